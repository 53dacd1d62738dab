#!/usr/bin/env bash
# Make environments on a GPU host without network from the pieces that make_bundle.py made.
#
#   scripts/gpu/setup_host.sh PIECES vllm sglang trl trl-vllm verl autotune
#
# Each gets .venvs/NAME: a virtual environment of its own on top of the host's packages, so that two engines can want
# different versions of the same package. trl-vllm and verl also find the packages of .venvs/vllm, which has to be there.
# What trains is imported once, so that what is missing shows now. What is already made is left alone.
set -euo pipefail
pieces=$1
shift

environment() { # NAME: an empty environment that also finds the host's packages; prints its site-packages
  local site
  python3 -m venv --without-pip ".venvs/$1"
  site=$(".venvs/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  python3 -c 'import sys; print("\n".join(f"import site; site.addsitedir({p!r})" for p in sys.path if p.endswith("-packages")))' \
    >"$site/zz_host.pth"
  echo "$site"
}

wheels() { # SITE FOLDER: unpack wheels into an environment
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$1" "$2"/*.whl
}

with_vllm() { # SITE: also find vLLM and what it brought, behind the environment's own packages
  local vllm
  [ -e .venvs/vllm/ready ] || { echo "Make vllm first: trl-vllm and verl generate with it." >&2 && exit 2; }
  vllm=$(.venvs/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo "import site; site.addsitedir('$vllm')" >"$1/yy_vllm.pth"
}

proof() { # NAME: what must be importable
  case $1 in
  autotune) echo autotune.run ;;
  trl) echo datasets trl.trainer.grpo_trainer ;;
  trl-vllm) echo datasets vllm trl.trainer.grpo_trainer ;;
  verl) echo ray vllm verl.trainer.main_ppo verl.workers.rollout.vllm_rollout.vllm_async_server ;;
  esac
}

for name in "$@"; do
  [ -e ".venvs/$name/ready" ] && continue
  site=$(environment "$name")
  case $name in
  autotune) wheels "$site" "$pieces/autotune" && pwd >"$site/autotune.pth" ;;
  trl) wheels "$site" "$pieces/trl" ;;
  trl-vllm) wheels "$site" "$pieces/trl" && with_vllm "$site" ;;
  verl) wheels "$site" "$pieces/verl" && with_vllm "$site" ;;
  vllm)
    wheels "$site" "$pieces/vllm/wheels"
    find "$pieces/vllm" -name 'part_*' | sort -V | xargs cat | tar xz -C "$site"
    ;;
  sglang)
    wheels "$pieces/zstd-site" "$pieces/sglang/zstd"
    PYTHONPATH="$pieces/zstd-site" python3 - "$pieces/sglang/sglang.tzst" "$site" <<'PYTHON'
import sys, tarfile, zstandard

with open(sys.argv[1], "rb") as file:
    stream = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file)
    tarfile.open(fileobj=stream, mode="r|").extractall(sys.argv[2], filter="fully_trusted")
PYTHON
    ;;
  *) echo "There is no bundle $name; there are vllm, sglang, trl, trl-vllm, verl and autotune." >&2 && exit 2 ;;
  esac
  ".venvs/$name/bin/python" - $(proof "$name") <<'PYTHON' || { echo "The environment $name lacks something; see above." >&2 && exit 3; }
import importlib, sys

for module in sys.argv[1:]:
    importlib.import_module(module)
PYTHON
  touch ".venvs/$name/ready"
done
