"""Reads a study's ledger: what was measured, what is in flight, what was noted. Needs no lock and tolerates a torn tail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from autotune.errors import AutotuneError, NotFound
from autotune.trial import Origin, TrialJob, TrialRecord, Value

FILE = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth keeping that is no trial: a quarantined GPU, a tracking backlog, the end of the study."""

    kind: str
    payload: Mapping[str, Value]
    at: float
    """Unix seconds."""


@dataclass
class History:
    """What a ledger says, in the order it was written."""

    digest: str = ""
    begun: float = 0.0
    """Unix seconds at which the study began: what tells it from one of its name that was set aside."""
    records: dict[int, TrialRecord] = field(default_factory=dict)
    """The latest record of each trial, by number."""
    earlier: list[TrialRecord] = field(default_factory=list)
    """Records of attempts that a later attempt at the same trial has replaced: what they cost was spent."""
    gpu_minutes: float = 0.0
    """Of everything that was run, replaced attempts included."""
    origins: Counter[Origin] = field(default_factory=Counter)
    """How many trials with a record there are of each origin."""
    keys: dict[int, str] = field(default_factory=dict)
    """The cache key of each trial that has one."""
    notes: list[Note] = field(default_factory=list)
    _open: dict[int, TrialJob] = field(default_factory=dict)
    _waiting: set[int] = field(default_factory=set)

    @property
    def in_flight(self) -> tuple[TrialJob, ...]:
        """Attempts that began and have no result."""
        return tuple(self._open[number] for number in sorted(self._open))

    @property
    def waiting(self) -> frozenset[int]:
        """The numbers of those in flight that never began to run; of older ledgers, which do not say so, none."""
        return frozenset(self._waiting)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event in. Raises KeyError or ValueError when it is none."""
        match event["event"]:
            case "study":
                self.digest, self.begun = event["digest"], event["at"]
            case "begin":
                job = TrialJob.model_validate(event["job"])
                self._open[job.number] = job
                (self._waiting.add if event.get("waits") else self._waiting.discard)(job.number)
            case "launch":
                self._waiting.discard(event["number"])
            case "record":
                self._record(TrialRecord.model_validate(event["record"]), event.get("key"))
            case "note":
                self.notes.append(Note(event["kind"], event["payload"], event["at"]))
            case other:
                raise ValueError(f"unknown event {other!r}")

    def _record(self, record: TrialRecord, key: str | None) -> None:
        if record.number in self.records:
            self.earlier.append(self.records[record.number])
            self.origins[self.records[record.number].origin] -= 1
        self.origins[record.origin] += 1
        self.gpu_minutes += record.gpu_minutes
        self.records[record.number] = record
        self._open.pop(record.number, None)
        self._waiting.discard(record.number)
        if key is not None:
            self.keys[record.number] = key


def read(folder: Path) -> History:
    """What a study's ledger says now, whether or not a driver is writing it. Raises NotFound, AutotuneError (damaged)."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"There is no study in {folder}.") from None
    except OSError as error:
        raise AutotuneError(f"Cannot read {path}: {error.strerror}.") from error
    return parse(data, path)[0]


def studies(store: Path) -> list[Path]:
    """Folders of the store that hold a study, oldest first."""
    return [path.parent for path in sorted(store.glob(f"*/{FILE}"), key=lambda path: path.stat().st_ctime)]


def parse(data: bytes, path: Path) -> tuple[History, int]:
    """The history, and how many bytes of the file are sound.

    Unsound bytes at the end are what a crash tore; followed by a sound line they are damage, which is not ours to repair.
    """
    history, sound, damaged = History(), 0, 0
    for number, (start, line) in enumerate(_lines(data), start=1):
        try:
            event = from_json(line)
            if not isinstance(event, dict):
                raise ValueError("not an object")
        except ValueError:
            damaged = damaged or number
            continue
        if damaged:
            raise AutotuneError(f"{path}:{damaged}: this line is damaged. Restore the file from a copy, or delete that line.")
        try:
            history.apply(event)
        except (KeyError, ValueError) as error:
            raise AutotuneError(f"{path}:{number}: this line was not written by this version of autotune: {error}") from error
        sound = start + len(line)
    return history, sound


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        stop = data.find(b"\n", start) + 1 or len(data)
        yield start, data[start:stop]
        start = stop
