#!/usr/bin/env python3
"""Make bundles of autotune and its engines for a GPU host without network, in pieces small enough to copy one at a time.

    python scripts/gpu/make_bundle.py .gpu vllm sglang autotune

Writes, below the folder:
    vllm/wheels/*.whl    vllm/v0/part_0, vllm/v1/part_1, ...     vLLM without FlashAttention 2 (Hopper runs version 3)
    sglang/zstd/*.whl    sglang/sglang.tzst                      SGLang with Triton attention, without FlashAttention 3
    trl/*.whl                                                    TRL and datasets
    verl/*.whl                                                   verl, and Ray without its Java part
    autotune/*.whl                                               what autotune needs and the host lacks

The host this is for has Python 3.12, torch 2.11.0+cu130, triton 3.6.0, torchvision 0.26 and transformers 5.17. Needs the package
zstandard and the program strip here, and 4 GiB of disk while it works. `setup_host.sh` is the other half.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
VLLM, SGLANG, TRL, VERL = "0.26.0", "0.5.17", "1.16.0", "0.9.1"
ANTLR = "antlr4-python3-runtime==4.9.3"
"""Hydra's parser, published as source only; it is pure Python."""
GLIBC = (39, 38, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64"]
SGLANG_LEFT_OUT = (
    "sgl_kernel/flash_ops*",
    "sgl_kernel/sm100",
    "sgl_kernel/infllm_ops*",
    "sgl_kernel/flashmla_ops*",
    "xgrammar/lib",
    "sglang/multimodal_gen",
)


def pip(command: str, specs: Sequence[str], *where: str) -> None:
    """Run pip for the host's Python and platform instead of this machine's."""
    target = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    target += [part for platform in PLATFORMS for part in ("--platform", platform)]
    pinned = [sys.executable, "-m", "pip", command, "-q", "--no-deps", "--only-binary=:all:", *target, *where, *specs]
    subprocess.run(pinned, check=True)


def requirements(name: str) -> list[str]:
    return (HERE / f"{name}.txt").read_text().split()


def download(specs: Sequence[str], to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    pip("download", specs, "-d", str(to))


def split(file: Path, to: Path, mib: int) -> None:
    """Cut a file into `to/v0/part_0`, `to/v1/part_1`, ...: a folder each, so that each can travel alone."""
    with file.open("rb") as whole:
        for index, chunk in enumerate(iter(lambda: whole.read(mib << 20), b"")):
            folder = to / f"v{index}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / f"part_{index}").write_bytes(chunk)


def bundle_vllm(to: Path, mib: int) -> None:
    download(requirements(f"vllm-{VLLM}"), to / "wheels")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        download([f"vllm=={VLLM}"], work / "wheel")
        with zipfile.ZipFile(next((work / "wheel").glob("vllm-*.whl"))) as wheel:
            wheel.extractall(work / "tree")
        for unused in (work / "tree/vllm/vllm_flash_attn").glob("_vllm_fa2_C*"):
            unused.unlink()
        for build in (work / "tree").glob("vllm/third_party/**/_C.cpython-3*.so"):
            if "cpython-312" not in build.name:
                build.unlink()
        with tarfile.open(work / "vllm.tgz", "w:gz", compresslevel=6) as tar:
            tar.add(work / "tree", arcname=".")
        split(work / "vllm.tgz", to, mib)


def bundle_sglang(to: Path, _mib: int) -> None:
    import zstandard

    download(["zstandard==0.25.0"], to / "zstd")
    with tempfile.TemporaryDirectory() as temporary:
        site = Path(temporary) / "site"
        pip("install", requirements(f"sglang-{SGLANG}"), "--no-compile", "--target", str(site))
        for unused in (path for pattern in SGLANG_LEFT_OUT for path in site.glob(pattern)):
            shutil.rmtree(unused) if unused.is_dir() else unused.unlink()
        for library in site.glob("xgrammar/**/*.so"):
            subprocess.run(["strip", "--strip-debug", str(library)], check=True)
        settings = zstandard.ZstdCompressionParameters.from_level(12, window_log=27, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=settings)
        with (
            (to / "sglang.tzst").open("wb") as file,
            compressor.stream_writer(file) as stream,
            tarfile.open(fileobj=stream, mode="w|") as tar,
        ):
            tar.add(site, arcname=".")


def bundle_autotune(to: Path, _mib: int) -> None:
    download(requirements("autotune"), to)


def bundle_trl(to: Path, _mib: int) -> None:
    download(requirements(f"trl-{TRL}"), to)


def bundle_verl(to: Path, _mib: int) -> None:
    download(requirements(f"verl-{VERL}"), to)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(to), ANTLR], check=True)
    without(next(to.glob("ray-*.whl")), "ray/jars/")


def without(wheel: Path, folder: str) -> None:
    """Drop a folder from a wheel."""
    lean = wheel.with_suffix(".lean")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(lean, "w", zipfile.ZIP_DEFLATED) as kept:
        for name in whole.namelist():
            if not name.startswith(folder):
                kept.writestr(whole.getinfo(name), whole.read(name))
    lean.replace(wheel)


BUNDLES = {
    "vllm": bundle_vllm,
    "sglang": bundle_sglang,
    "trl": bundle_trl,
    "verl": bundle_verl,
    "autotune": bundle_autotune,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundles", nargs="+", choices=sorted(BUNDLES))
    parser.add_argument("--piece-mib", type=int, default=54)
    given = parser.parse_args()
    for name in given.bundles:
        BUNDLES[name](given.folder / name, given.piece_mib)
        for part in sorted((given.folder / name).iterdir()):
            files = [part] if part.is_file() else [file for file in part.rglob("*") if file.is_file()]
            print(f"{sum(file.stat().st_size for file in files) / 2**20:7.1f} MiB  {part}")


if __name__ == "__main__":
    main()
