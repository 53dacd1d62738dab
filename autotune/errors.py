"""What a user can act on, each with the exit code the command line returns.

    AutotuneError                 2   base: one clear message, never a traceback
    ├── InvalidInput              2   a study, a space or a command line says something impossible
    ├── NotFound                  2   no such study, trial, engine, exporter
    ├── MissingPrerequisite       3   a package, engine or GPU is not there; the message says the line that installs it
    ├── StudyBusy                 4   another driver holds the study
    ├── NothingMeasured           1   the study ended and no trial was measured, so there is nothing to show or export
    ├── StoreUnwritable           5   the store's disk is full or read-only; what was measured until then is kept
    ├── MachineUnusable           6   trial after trial fails by the machine's fault, or no GPU is left; the study can be continued
    └── Interrupted             130   the user stopped the run; the message says how to continue

Everything else that escapes is a defect of autotune and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a user's file.

    `path` is the dotted place inside the file; `line` is 1-based, None where a file has no lines to point at.
    """

    path: str
    problem: str
    found: str | None = None
    allowed: str | None = None
    nearest: str | None = None
    line: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        text = f"{place}: " if place else ""
        text += f"{self.path}: " if self.path else ""
        text += self.problem
        if self.found is not None:
            text += f" Found {self.found}."
        if self.allowed is not None:
            text += f" Allowed: {self.allowed}."
        if self.nearest is not None:
            text += f" Did you mean {self.nearest!r}?"
        return text


class WrongValue(ValueError):
    """Raised by a model's validator that knows more than where the model stands: `at` leads from there to the value."""

    def __init__(self, problem: str, *at: str | int, **details: Any) -> None:
        self.problem, self.at, self.details = problem, at, details
        super().__init__(str(Mistake("", problem, **details)))


class AutotuneError(Exception):
    """A problem the user can act on."""

    exit_code = 2


class InvalidInput(AutotuneError):
    """A file or command line is wrong; carries every mistake found, in file order."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


class NotFound(AutotuneError):
    """A study, trial, engine or exporter of that name does not exist."""


class MissingPrerequisite(AutotuneError):
    """A package, engine or device is missing; the message names the line that installs it."""

    exit_code = 3


class StudyBusy(AutotuneError):
    """Another driver holds the study."""

    exit_code = 4


class NothingMeasured(AutotuneError):
    """No trial of the study was measured."""

    exit_code = 1


class StoreUnwritable(AutotuneError):
    """The study's store can no longer be written."""

    exit_code = 5


class MachineUnusable(AutotuneError):
    """The machine fails whatever trial it is given."""

    exit_code = 6


class Interrupted(AutotuneError):
    """The user stopped the run."""

    exit_code = 130


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name most like `name`, else the shortest that begins with it, else one that it begins with; None when nothing is
    close."""
    known = list(names)
    singular = name.removesuffix("s")
    if singular in known:
        return singular
    spelt = [one for one in known if one.lower() == name.lower()]
    matches = [*spelt, *difflib.get_close_matches(name, known, n=1, cutoff=0.6)]
    longer = sorted((one for one in known if len(name) > 2 and one.startswith(name)), key=len)
    stem = [one for one in known if name.startswith(f"{one}_")]
    return next(iter((*matches, *longer, *stem)), None)
