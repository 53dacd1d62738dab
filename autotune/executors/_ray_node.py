"""What an attempt at a trial does on the node it is placed on; it knows nothing of Ray.

It works in the scratch folder of its own process, whose name says whose it is. What a killed process leaves behind, folder
and engine, is therefore found and ended by its warden, and by `clean` where that was killed too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autotune import gpu_memory, proc, process, warden
from autotune.bar import Bar
from autotune.cache import measured_by
from autotune.engines.base import Context, Engine, Identity
from autotune.errors import AutotuneError
from autotune.evaluate import evaluate
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

_FILE_BYTES = 4 << 20
_ALL_BYTES = 64 << 20
"""The end of a trial's file, and of all its files together, that travels back."""

_ENDING_S = 10.0
"""How long a process that was killed may take to be gone."""

Files = dict[str, bytes]
Answer = tuple[str, Files]
"""A trial's record as JSON, and its files."""


@dataclass(frozen=True)
class Home:
    """The study as its driver names it; the store need not exist on other nodes."""

    store: str
    study: str
    begun: float = 0.0


@dataclass(frozen=True)
class Seat:
    """Where trials run one after the other: GPUs of this node, for as long as this process has them."""

    home: Home
    gpus: Sequence[int]

    def attempt(self, engine: Engine, workload: Workload, job: TrialJob, bar: Bar | None) -> Answer:
        """One attempt here, after ending what earlier ones of this store left. Raises only what `evaluate` raises."""
        clean(self.home.store)
        assert self._warden is not None and self._idle is not None, "looked at while nothing runs"
        root = process.scratch_root()
        context = self._context(job, root, bar)
        try:
            record = evaluate(job, engine, workload, context, lambda label, share: None)
            return record.model_dump_json(), packed(context.folder)
        finally:
            # Not all of the root: what else this process keeps there is not the trial's.
            shutil.rmtree(context.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                root.rmdir()

    @property
    def watched(self) -> bool:
        """Whether there is any memory that a trial can leave in use."""
        return bool(self._idle)

    def held(self) -> list[str]:
        """Wait until the GPUs' memory is back. Says which it did not come back on, and who holds it."""
        return [gpu_memory.quarantine_message(index, extra) for index, extra in gpu_memory.wait_memory_back(self._idle).items()]

    @cached_property
    def _idle(self) -> Mapping[int, int]:
        """Once for all trials of this process, so that what each of them leaves adds up."""
        return gpu_memory.idle_baseline(self.gpus)

    @cached_property
    def _warden(self) -> process.Piped:
        return warden.watch(Path(self.home.store))

    def _context(self, job: TrialJob, root: Path, bar: Bar | None) -> Context:
        return Context(
            study=self.home.study,
            begun=self.home.begun,
            trial=job.number,
            attempt=job.attempt,
            tag=process.make_tag(Path(self.home.store), self.home.study, job.number, job.attempt),
            folder=root / "folder",
            scratch=root / "trial",
            cache=Path(tempfile.gettempdir()) / "autotune-cache",
            gpus=tuple(self.gpus),
            seed=job.seed,
            origin=job.origin,
            bar=bar,
            climb_from=job.climb_from,
        )


def installed(engine: Engine) -> Mapping[str, str] | str:
    """What is installed here, or why the engine cannot run here."""
    # Another engine than the one that travelled, which may have brought along what it was told by its own machine.
    try:
        return described(type(engine)(engine.options).identity())
    except AutotuneError as error:
        return str(error)


def described(identity: Identity) -> dict[str, str]:
    """What a trial's numbers depend on beside its configuration, by name: autotune, the engine, what it runs on."""
    own = {"autotune": measured_by(), identity.kind: identity.version, "Python": identity.python, "device": identity.device}
    return {**identity.packages, **own}


def unlike(installed: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What is installed otherwise than wanted, each as a user reads it."""
    names = sorted(name for name in installed.keys() | wanted.keys() if installed.get(name) != wanted.get(name))
    return [f"{name} {installed.get(name) or 'missing'} instead of {wanted.get(name) or 'none'}" for name in names]


def arrived(*parts: object) -> None:
    """Nothing: that it was called with them shows that all of them can be imported here."""


def clean(store: str) -> None:
    """End here what belongs to processes of the store that are gone, and remove their folders."""
    process.reap(Path(store))


def leave(home: Home, folders: Sequence[str]) -> None:
    """Clean up after the study, whose processes here are being ended, and remove the given folders.

    With each of them go those above it that are then empty.
    """
    deadline = time.monotonic() + _ENDING_S
    while _runs(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    clean(home.store)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.removedirs(Path(folder).parent)


def _runs(home: Home) -> bool:
    """Whether a process that ran a trial of the study here is still there."""
    mine = proc.parse_tag(process.make_tag(Path(home.store), home.study, 0))
    assert mine is not None
    found = [tag for text in proc.tags(proc.table()).values() if (tag := proc.parse_tag(text)) is not None]
    return any((tag.store, tag.study) == (mine.store, mine.study) and proc.driver_alive(tag) for tag in found)


def packed(folder: Path) -> Files:
    """The ends of a folder's files, the smallest first, up to a limit in all."""
    files, room = Files(), _ALL_BYTES
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=_bytes):
        try:
            with path.open("rb") as stream:
                stream.seek(max(0, _bytes(path) - _FILE_BYTES))
                content = stream.read(_FILE_BYTES)
        except OSError:  # what cannot be read, or is gone meanwhile, costs no measurement
            continue
        if len(content) > room:
            break
        room -= len(content)
        files[str(path.relative_to(folder))] = content
    return files


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def unpack(folder: Path, files: Files) -> None:
    """Write the files below the folder, and none anywhere else."""
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
