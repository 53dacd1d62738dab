"""What an attempt at a trial does on the node it is placed on; it knows nothing of Ray.

It works in the scratch folder of its own process, whose name says whose it is. What a killed process leaves behind, folder
and engine, is therefore found and ended by `clean`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import process
from autotune.bar import Bar
from autotune.engines.base import Context, Engine
from autotune.evaluate import evaluate
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

_FILE_BYTES = 4 << 20
_ALL_BYTES = 64 << 20
"""The end of a trial's file, and of all its files together, that travels back."""

Files = dict[str, bytes]
Answer = tuple[str, Files]
"""A trial's record as JSON, and its files."""


@dataclass(frozen=True)
class Home:
    """The study as its driver names it; the store need not exist on other nodes."""

    store: str
    study: str


def attempt(engine: Engine, workload: Workload, job_text: str, home: Home, bar: Bar | None, gpus: Sequence[int]) -> Answer:
    """One attempt here, after ending what earlier ones of this store left. Raises only what `evaluate` raises."""
    job = TrialJob.model_validate_json(job_text)
    clean(home.store)
    root = process.scratch_root()
    context = Context(
        study=home.study,
        trial=job.number,
        attempt=job.attempt,
        tag=process.make_tag(Path(home.store), home.study, job.number, job.attempt),
        folder=root / "folder",
        scratch=root / "trial",
        cache=Path(tempfile.gettempdir()) / "autotune-cache",
        gpus=tuple(gpus),
        seed=job.seed,
        origin=job.origin,
        bar=bar,
        climb_from=job.climb_from,
    )
    try:
        record = evaluate(job, engine, workload, context, lambda label, share: None)
        return record.model_dump_json(), packed(context.folder)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def clean(store: str) -> None:
    """End here what belongs to processes of the store that are gone, and remove their folders."""
    process.reap(Path(store))


def packed(folder: Path) -> Files:
    """The ends of a folder's files, the smallest first, up to a limit in all."""
    files, room = Files(), _ALL_BYTES
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size):
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _FILE_BYTES))
            content = stream.read(_FILE_BYTES)
        if len(content) > room:
            break
        room -= len(content)
        files[str(path.relative_to(folder))] = content
    return files


def unpack(folder: Path, files: Files) -> None:
    """Write the files below the folder, and none anywhere else."""
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
