"""Finds what a killed driver left behind, by tag and by the name of its scratch folder, and ends only that."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from autotune import proc
from autotune.ending import end
from autotune.errors import AutotuneError

_OWNER = "autotune-tag"
"""File in a folder outside the scratch folder that says whose it is."""
_NO_TRIAL = {
    "standby": "an interpreter kept ready, or the trial launched in it,",
    "tracking": "the sender to the tracking server",
    "workers": "the trials' workers",
}
"""What a tag stands for that was made before there was a trial, or for none; a process keeps its tag for life."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """One tag's leftovers that were ended. `trial` is the trial's number and attempt, or what else the tag was made for."""

    study: str
    trial: str
    pids: tuple[int, ...]
    survivors: tuple[int, ...]

    def __str__(self) -> str:
        count = "1 process" if len(self.pids) == 1 else f"{len(self.pids)} processes"
        whose = _NO_TRIAL.get(self.trial.rpartition("-")[0], f"trial {self.trial}")
        said = f"{count} of {whose} of study {self.study}"
        return f"{said}; {len(self.survivors)} did not end" if self.survivors else said


def reap(store: Path | None = None) -> list[Reaped]:
    """End every tagged process whose driver is gone, of one store or (None) of any, and remove such drivers' scratch folders.

    A process whose driver still runs, or was in another pid namespace, is left alone.
    """
    wanted = None if store is None else proc.store_digest(store)
    mine = proc.lineage()
    found = {text for pid, text in proc.tags(proc.table()).items() if pid not in mine}
    reaped = []
    for text in sorted(found):
        tag = proc.parse_tag(text)
        if tag is None or (wanted is not None and tag.store != wanted) or proc.driver_alive(tag):
            continue
        pids = tuple(one.pid for one in proc.members(text))
        _, survivors = end(lambda text=text: proc.members(text), None, 3.0)  # type: ignore[misc]
        reaped.append(Reaped(tag.study, tag.trial, pids, survivors))
    _remove_orphaned_scratch()
    return reaped


def scratch_root() -> Path:
    """Where this driver's trials keep what must not outlive them, made on first use and closed to other users.

    Its name says whose it is, so that `reap` can judge it. Raises AutotuneError when it cannot be made, or is a stranger's.
    """
    me = proc.look(os.getpid())
    assert me is not None, "this process is in the process table"
    path = Path(tempfile.gettempdir()) / f"autotune-{proc.pid_namespace()}-{me.pid}-{me.start}"
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise AutotuneError(f"{path} belongs to somebody else. Remove it, or set TMPDIR to a folder of your own.") from None
    except OSError as error:
        raise AutotuneError(f"Cannot make the folder for temporary files {path}: {error.strerror}.") from error
    return path


def make_apart(folder: Path, tag: str) -> None:
    """Make a folder for temporary files whose paths would not fit into the scratch folder, so that `reap` knows whose it is.

    Its name is `at-` and what tells it from others, below the folder for temporary files.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / _OWNER).write_text(tag)


def _remove_orphaned_scratch() -> None:
    for note in Path(tempfile.gettempdir()).glob(f"at-*/{_OWNER}"):
        with contextlib.suppress(OSError, ValueError):
            tag = proc.parse_tag(note.read_text())
            if tag is not None and not proc.driver_alive(tag) and not note.parent.is_symlink():
                shutil.rmtree(note.parent, ignore_errors=True)
    for folder in Path(tempfile.gettempdir()).glob("autotune-*-*-*"):
        parts = folder.name.split("-")[1:]
        if len(parts) != 3 or not all(part.isdecimal() for part in parts) or folder.is_symlink():
            continue
        namespace, pid, begun = (int(part) for part in parts)
        if not proc.driver_alive(proc.Tag("", namespace, pid, begun, "", "", "")):
            shutil.rmtree(folder, ignore_errors=True)
