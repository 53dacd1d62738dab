"""What a study has measured, on disk: one append-only file of JSON lines that survives anything that ends its writer.

A study's folder holds `study.yaml` (frozen copy), `ledger.jsonl`, `lock` and `trials/NNNN-A/`. Each event is one line,
written with a single write and synced before anything else happens; a line torn by a crash is dropped at the next open.
One driver writes at a time; anyone may read at any time without a lock.

Events: `study` (digest, always first), `begin` (an attempt is handed over), `launch` (it begins to run), `record` (a trial's
result), `note` (anything else).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic_core import from_json

from autotune.errors import AutotuneError, StoreUnwritable, StudyBusy
from autotune.history import FILE, History, Note, parse, read, studies
from autotune.trial import TrialJob, TrialRecord, Value

__all__ = ["FILE", "FORMAT", "STUDY", "History", "Ledger", "Note", "read", "studies"]

FORMAT = 1
STUDY = "study.yaml"


class Ledger:
    """A study's ledger, open for writing and locked. A context manager."""

    def __init__(self, folder: Path, study_text: str, digest: str, *, fresh: bool = False) -> None:
        """Open or create the study's folder, take its lock and repair a torn tail.

        `digest` is what may not change between runs of one study; `fresh` sets aside what was measured before.
        Raises StudyBusy (another driver holds it), StoreUnwritable, AutotuneError (the study changed, or a damaged file).
        """
        self.folder = folder
        self.path = folder / FILE
        with _writing(folder):
            (folder / "trials").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / "lock")
        self._fd = -1
        self._size = 0
        try:
            with _writing(folder):
                if fresh or not self.path.exists():
                    _set_aside(folder)
                self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self.history = self._recover()
            self._begin_study(study_text, digest)
        except BaseException:
            self.close()
            raise

    @property
    def records(self) -> Mapping[int, TrialRecord]:
        """The latest record of each trial, by number."""
        return self.history.records

    @property
    def in_flight(self) -> tuple[TrialJob, ...]:
        """Attempts that began and have no result: what a resumed study runs again."""
        return self.history.in_flight

    @property
    def waiting(self) -> frozenset[int]:
        """The numbers of those in flight that never began to run."""
        return self.history.waiting

    @property
    def notes(self) -> tuple[Note, ...]:
        """Every note, oldest first."""
        return tuple(self.history.notes)

    def begin(self, job: TrialJob) -> None:
        """Say, before anything is started, that an attempt is handed over. It may wait for a place; `launch` says when it runs."""
        self._append("begin", {"job": job.model_dump(mode="json"), "waits": True})

    def launch(self, job: TrialJob) -> None:
        """Say that an attempt begins to run: only what has begun can be what its driver died of."""
        self._append("launch", {"number": job.number, "attempt": job.attempt})

    def record(self, record: TrialRecord, key: str | None = None) -> None:
        """Keep a trial's result, durably once this returns. `key` lets later studies find it (see `cache`)."""
        self._append("record", {"key": key} if key else {}, {"record": record.model_dump_json()})

    def note(self, kind: str, payload: Mapping[str, Value]) -> None:
        """Keep anything else; `payload` is JSON."""
        self._append("note", {"kind": kind, "payload": dict(payload)})

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        for name in ("_fd", "_lock"):
            handle = getattr(self, name)
            if handle >= 0:
                os.close(handle)
                setattr(self, name, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _recover(self) -> History:
        data = self.path.read_bytes()
        history, sound = parse(data, self.path)
        if sound < len(data):
            os.ftruncate(self._fd, sound)
        if sound and data[sound - 1 : sound] != b"\n":
            os.write(self._fd, b"\n")
        os.fsync(self._fd)
        self._size = os.fstat(self._fd).st_size
        return history

    def _begin_study(self, text: str, digest: str) -> None:
        if self.history.digest and self.history.digest != digest:
            raise AutotuneError(
                f"The study in {self.folder} was begun with other settings, and its trials would not be comparable. "
                "Run it with --fresh to start anew, or give the changed study another name."
            )
        with _writing(self.folder):
            _write_atomically(self.folder / STUDY, text)
            _sync(self.folder)
        if not self.history.digest:
            self._append("study", {"digest": digest, "format": FORMAT})

    def _append(self, event: str, fields: Mapping[str, Any], encoded: Mapping[str, str] | None = None) -> None:
        """`encoded` fields are JSON already."""
        head = json.dumps({"event": event, "at": time.time(), **fields}, allow_nan=False)
        tail = "".join(f', "{name}": {value}' for name, value in (encoded or {}).items())
        line = (head[:-1] + tail + "}\n").encode()
        understood = from_json(line)
        with _writing(self.folder):
            self._write(line)
        self.history.apply(understood)

    def _write(self, line: bytes) -> None:
        """One write, synced. What a full disk let through of it is cut off again, so that the file ends with a whole line."""
        if os.fstat(self._fd).st_size != self._size:
            os.ftruncate(self._fd, self._size)
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)


def _lock(path: Path) -> int:
    """Takes the lock file, which also says who holds it. The kernel gives it back when its holder dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StudyBusy(_busy(path)) from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode(), 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def _busy(path: Path) -> str:
    holder: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        holder = json.loads(path.read_text())
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
    return f"The study {path.parent.name!r} is being run by {who}. Wait for it, or stop it with Ctrl-C where it runs."


def _set_aside(folder: Path) -> None:
    """Moves what an earlier run measured to `discarded/N`: also trials that no ledger knows, since one of the same number would
    take their logs and steps for its own."""
    trials = folder / "trials"
    if (folder / FILE).exists() or any(trials.iterdir()):
        taken = [int(path.name) for path in folder.glob("discarded/*") if path.name.isdecimal()]
        target = folder / "discarded" / str(max(taken, default=0) + 1)
        target.mkdir(parents=True)
        for path in (folder / FILE, folder / STUDY, trials):
            if path.exists():
                path.rename(target / path.name)
        trials.mkdir()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, as a file's own sync does not."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says in one sentence that the store cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreUnwritable(
            f"Cannot write to {folder}: {error.strerror or error}. What was measured until now is kept; "
            "make room or make it writable and run the study again to continue."
        ) from error
