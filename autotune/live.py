"""The progress of a run: what is running, what is next, how long it will take."""

from __future__ import annotations

import statistics
import time
from typing import Protocol

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from autotune.score import Score
from autotune.terminal import Plain, clean
from autotune.trial import Configuration, Failed, TrialJob, TrialRecord

_SAID = 160
"""Characters of a failure's reason that a line of progress shows; the whole stands in `autotune show`."""


class Reporter(Protocol):
    """Told by the run loop what happens."""

    def say(self, text: str) -> None:
        """A sentence for the user."""

    def expect(self, done: int, search: int, finals: int, at_once: int) -> None:
        """How many trials are done, how many of the search and of the finalists' rounds are to come at most, and how many
        run at a time."""

    def started(self, job: TrialJob) -> None:
        """A trial was handed to the executor."""

    def progress(self, number: int, label: str, share: float) -> None:
        """Where a running trial is."""

    def finished(self, record: TrialRecord, judged: Score | Failed) -> None:
        """A trial ended: its score, or why it has none."""

    def close(self) -> None:
        """The run is over."""


class Silent:
    """Says nothing but warnings, on standard error."""

    def __init__(self) -> None:
        self.console = Plain(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def expect(self, done: int, search: int, finals: int, at_once: int) -> None:
        pass

    def started(self, job: TrialJob) -> None:
        pass

    def progress(self, number: int, label: str, share: float) -> None:
        pass

    def finished(self, record: TrialRecord, judged: Score | Failed) -> None:
        pass

    def close(self) -> None:
        pass


class Live:
    """A bar per study and per running trial on a terminal; a line per event elsewhere."""

    def __init__(self, name: str, objectives: tuple[str, ...], constraints: tuple[str, ...] = ()) -> None:
        self.console = Plain(highlight=False)
        self.name, self.objectives, self.constraints = name, objectives, constraints
        self.total, self.done, self.finals, self.at_once = 0, 0, 0, 1
        self.spent: list[float] = []
        """Wall seconds of each trial that ended."""
        self.whole: list[float] = []
        """Of those that ran to their end, as a finalist's does."""
        self.begun: dict[int, float] = {}
        self.tasks: dict[int, TaskID] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self.study = self.bars.add_task(name, total=1, note="")
        self.bars.start()

    def say(self, text: str) -> None:
        # A line cut at some width can be neither searched for nor counted in a log.
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def expect(self, done: int, search: int, finals: int, at_once: int) -> None:
        self.done, self.total, self.finals, self.at_once = done, done + search + finals, finals, max(1, at_once)
        self._study_bar()

    def started(self, job: TrialJob) -> None:
        self.begun[job.number] = time.monotonic()
        text = f"trial {job.number} ({job.origin})"
        self.tasks[job.number] = self.bars.add_task(text, total=1.0, note="starting")
        if not self.console.is_terminal:
            self.say(f"{text}: {_brief(job.configuration)}{self._left()}")

    def progress(self, number: int, label: str, share: float) -> None:
        if number in self.tasks:
            self.bars.update(self.tasks[number], completed=share, note=escape(clean(label)))

    def finished(self, record: TrialRecord, judged: Score | Failed) -> None:
        if record.number in self.tasks:
            self.bars.remove_task(self.tasks.pop(record.number))
        if record.number in self.begun and record.reused_from is None:
            self.spent.append(time.monotonic() - self.begun.pop(record.number))
            self.whole += self.spent[-1:] if record.measurement is not None else []
        self.say(f"trial {record.number} ({record.origin}): {self._result(record, judged)}  [{_brief(record.configuration)}]")

    def close(self) -> None:
        self.bars.stop()

    def _result(self, record: TrialRecord, judged: Score | Failed) -> str:
        if isinstance(judged, Failed):
            # A log's last line may be a mere rule.
            said = [line for line in judged.evidence if any(map(str.isalpha, line))]
            evidence = f": {said[-1][: _SAID - 3]}..." if said and len(said[-1]) > _SAID else f": {said[-1]}" if said else ""
            return f"{judged.kind} during {judged.phase}{evidence}"
        values = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.objectives, judged.values, strict=True))
        pairs = zip(self.constraints, judged.violations, strict=True)
        broken = " and ".join(f"{name} by {by:.1%}" for name, by in pairs if by > 0)
        return values + (f" (breaks {broken})" if broken else "") + (" (reused)" if record.reused_from else "")

    def _study_bar(self) -> None:
        self.bars.update(
            self.study, total=max(self.total, 1), completed=self.done, note=f"{self.done} of {self.total} trials{self._left()}"
        )

    def _left(self) -> str:
        if not self.spent:
            return ""
        left = max(self.total - self.done, 0)
        finals = min(self.finals, left)
        seconds = (left - finals) * statistics.median(self.spent) + finals * statistics.median(self.whole or self.spent)
        left_s = seconds / self.at_once
        return f", about {left_s / 60:.0f} min left" if left_s >= 60 else f", about {left_s:.0f} s left" if left_s else ""


def _brief(configuration: Configuration) -> str:
    text = ", ".join(f"{name}={value}" for name, value in configuration.values.items())
    return f"{configuration.engine}: {text or 'default'}"
