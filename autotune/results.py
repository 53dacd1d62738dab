"""Reads a finished (or running) study back as tables, from its ledger in the store.

`tracking.receive.read` rebuilds the same from a tracking server alone, for people who have nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from autotune import ledger
from autotune import study as studies
from autotune.analysis import Analysis
from autotune.errors import AutotuneError, NotFound, NothingMeasured, nearest
from autotune.quality import QUALITY, Guard
from autotune.rules import OwnRules
from autotune.trial import TrialRecord

RULES = "rules"
"""The kind of the ledger's note that holds what a study's user does not want of each engine."""


@dataclass(frozen=True)
class StudyResults(Analysis):
    """Everything measured for one study, as pandas tables; what they mean together is `Analysis`."""

    folder: Path | None = None
    """The study's folder in the store; None when read from a tracking server."""
    notes: tuple[ledger.Note, ...] = ()
    """What the ledger keeps beside trials: engines as measured, quarantined GPUs, finalists' verdicts."""

    @property
    def guard(self) -> Guard:
        kept = [note.payload for note in self.notes if note.kind == QUALITY]
        return Guard.model_validate(kept[-1]) if kept else Guard()

    @cached_property
    def own_rules(self) -> Mapping[str, OwnRules]:
        kept = [note.payload for note in self.notes if note.kind == RULES]
        return {kind: OwnRules.model_validate(rules) for kind, rules in kept[-1].items()} if kept else {}

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial, indexed by its number: outcome, parameters as `param.NAME`, objectives, constraints, totals."""
        names = sorted({name for record in self.records for name in record.configuration.values})
        rows = [self._trial_row(record, names) for record in self.records]
        return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per load level or training step of every measured trial; `invalid` says why a row is not scored."""
        return pd.DataFrame(
            {"trial": record.number, "invalid": row.invalid, **row.level, **row.metrics}
            for record in self.records
            if record.measurement is not None
            for row in record.measurement.rows
        )

    @cached_property
    def front(self) -> pd.DataFrame:
        """Front members and contenders: value, bounds and default of each objective, ties, runs; best first objective first."""
        found = self.noisy_front
        rows = [self._front_row(index, "member") for index in found.members]
        rows += [self._front_row(index, "contender") for index in found.contenders]
        if not rows:
            return pd.DataFrame()
        table = pd.DataFrame(rows).set_index("trial")
        first = self.study.objectives[0]
        return table.sort_values(["front", first.name], ascending=[False, first.direction == "minimize"])

    @cached_property
    def default(self) -> pd.Series:
        """The default's row of `trials`, objectives as means over its runs. Raises NothingMeasured."""
        one = self.default_candidate
        if one is None:
            raise NothingMeasured(f"The engine's default configuration was not measured in study {self.name!r}.")
        means = dict(zip(self.objective_names, self.point(one), strict=True))
        row: dict[str, Any] = {str(name): value for name, value in self.trials.loc[one.trial].items()}
        return pd.Series({**row, **means}, name=one.trial)

    def _trial_row(self, record: TrialRecord, names: Sequence[str]) -> dict[str, Any]:
        found, failed = self.score(record), self.failure(record)
        row: dict[str, Any] = {
            "trial": record.number,
            "attempt": record.attempt,
            "origin": str(record.origin),
            "outcome": self.outcome(record),
            "phase": str(failed.phase) if failed else None,
            "advice": failed.advice if failed else None,
            "feasible": found.feasible if found else None,
            "front": self.membership.get(record.number),
            "engine": record.configuration.engine,
            "configuration": record.configuration.digest,
            "started_at": record.started_at or None,
            "seconds": record.total_seconds,
        }
        row |= {f"param.{name}": record.configuration.values.get(name, record.effective.get(name)) for name in names}
        row |= dict(record.measurement.totals) if record.measurement else {}
        drift = self.quality.drift(record)
        row |= {"logprob_drift": drift.nats} if drift else {}
        if found:
            row |= dict(zip(self.objective_names, found.values, strict=True))
            row |= {f"violation.{c.name}": v for c, v in zip(self.study.constraints, found.violations, strict=True)}
        return row

    def _front_row(self, index: int, mark: str) -> dict[str, Any]:
        one = self.feasible[index]
        ties = [self.feasible[other].trial for other in self.noisy_front.ties[index]]
        row: dict[str, Any] = {"trial": one.trial, "front": mark, "runs": len(one.records), "ties": ties}
        for objective in self.study.objectives:
            cell = self.interval(one, objective)
            low, high = (None, None) if cell is None else (cell.low, cell.high)
            row |= {objective.name: self.mean(one, objective), f"{objective.name}.low": low, f"{objective.name}.high": high}
        return row | {f"param.{name}": value for name, value in one.records[0].configuration.values.items()}


def load(name: str, store: Path) -> StudyResults:
    """Read a study of a store, finished or running. Raises NotFound with the nearest name, AutotuneError (damaged)."""
    folder = store / name
    try:
        there = (folder / ledger.FILE).is_file()
    except OSError as error:
        raise AutotuneError(f"Cannot look for the study {name!r} in {store}: {error.strerror}.") from error
    if not there:
        known = [path.name for path in ledger.studies(store)]
        close = nearest(name, known)
        hint = f" Did you mean {close!r}?" if close else f" It holds {', '.join(known)}." if known else " It holds none."
        raise NotFound(f"The store {store} holds no study named {name!r}.{hint}")
    return read(folder)


def read(folder: Path) -> StudyResults:
    """Read a study from its own folder, for instance a kept one. Raises NotFound, AutotuneError, InvalidInput."""
    history = ledger.read(folder)
    study, _ = studies.load(folder / ledger.STUDY)
    return StudyResults(study, in_order(history.records.values()), folder=folder, notes=tuple(history.notes))


def in_order(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Records by trial number."""
    return tuple(sorted(records, key=lambda record: record.number))
