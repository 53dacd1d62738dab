"""What driver and sender tell each other, as two small files in the study's folder, each written by one of them.

`tracking/request.json` (driver): whether the study runs or how it ended. `tracking/state.json` (sender): what the server
has acknowledged and what went wrong last. Neither is a result: losing both only makes the sender look again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, ValidationError

from autotune.trial import digest_of

FOLDER = "tracking"
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""MLflow's own words; KILLED is a study that was stopped and can go on."""


class _Kept(BaseModel):
    """A value kept in a file that is replaced whole."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """What the file says; the initial value where it is missing or damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()

    def save(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(self.model_dump_json())
        temporary.replace(path)


class Request(_Kept):
    """What the driver wants shown."""

    number: int = 0
    """Grows with every request, so that the driver knows which one was met."""
    status: Status = "RUNNING"
    files: tuple[str, ...] = ()
    """Text files to show beside the study at its end: exports, the report."""
    at: float = Field(default_factory=time.time)

    @property
    def over(self) -> bool:
        """Whether the study is not running."""
        return self.status != "RUNNING"

    @property
    def digest(self) -> str:
        """What tells one end from another."""
        return digest_of([self.status, self.files])


class State(_Kept):
    """How far the sender is."""

    target: str = ""
    """Digest of server, experiment and study: a state of another target counts for nothing."""
    parent: str = ""
    experiment: str = ""
    sent: dict[str, str] = Field(default_factory=dict)
    """Trial key → digest of what the server acknowledged."""
    ledger_bytes: int = 0
    """Size of the ledger when the last complete pass began."""
    request: int = 0
    """The last request met by a complete pass."""
    problem: str | None = None
    """Why the last pass failed; None after a complete one."""
    attempts: int = 0
    """Passes begun by this sender."""
    failures: int = 0
    """Passes of this sender that failed."""


def request_path(folder: Path) -> Path:
    """Where the driver of a study's folder says what it wants sent."""
    return folder / FOLDER / "request.json"


def state_path(folder: Path) -> Path:
    """Where the sender says what the server acknowledged."""
    return folder / FOLDER / "state.json"
