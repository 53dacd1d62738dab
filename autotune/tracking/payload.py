"""What MLflow is told about a trial: parameters, metrics, tags and texts. Pure, and free of MLflow.

Parameters hold every name that any trial of the study set, with the value this trial ran with, so that columns compare.
Metrics: objectives and totals by their own names; each row's metric as `LEVEL/METRIC` with the load level as its step.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.analysis import Analysis
from autotune.ledger import Note
from autotune.secrets import is_secret_name, redact, redact_env
from autotune.trial import Failed, Frozen, Row, TrialRecord, digest_of

MAX_PARAMETER = 5_000
"""MLflow's databases cut a parameter at 6,000 characters, older ones at 500."""
MAX_LOG_BYTES = 1 << 20
"""The end of a log is where a failure explains itself; more is left in the trial's folder."""
NOTES = "notes.json"
LOG_SUFFIXES = (".log", ".txt", ".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Point:
    """One metric value. `at` is Unix milliseconds, the same at every sending, so that sending twice adds nothing."""

    key: str
    value: float
    step: int
    at: int


@dataclass(frozen=True, slots=True)
class Payload:
    """Everything one child run shows."""

    key: str
    name: str
    started_at: int
    ended_at: int
    failed: bool
    params: Mapping[str, str]
    metrics: tuple[Point, ...]
    tags: Mapping[str, str]
    texts: Mapping[str, str]

    @property
    def body(self) -> str:
        """Digest of what never changes once the trial is over; tags may (the front moves on)."""
        return digest_of([self.params, [asdict(point) for point in self.metrics], self.texts])


def key_of(record: TrialRecord) -> str:
    """What a run is found by within its study: trial and attempt."""
    return f"{record.number}/{record.attempt}"


def of_trial(analysis: Analysis, record: TrialRecord, tags: Mapping[str, str], names: tuple[str, ...]) -> Payload:
    """The child run of a trial with its `tags_of`; `names` are the parameters that any trial of the study set."""
    started = int(record.started_at * 1000)
    return Payload(
        key=key_of(record),
        name=f"{record.number:04d} {record.origin}" + (f" (attempt {record.attempt})" if record.attempt > 1 else ""),
        started_at=started,
        ended_at=started + int(1000 * (record.total_seconds or 0)),
        failed=analysis.failure(record) is not None,
        params=_params(analysis, record, names),
        metrics=tuple(_metrics(analysis, record, started)),
        tags=tags,
        texts=_texts(record, analysis.failure(record)),
    )


def parameter_names(analysis: Analysis) -> tuple[str, ...]:
    """Every parameter that any trial set, in order of first use."""
    return tuple(dict.fromkeys(name for record in analysis.records for name in record.configuration.values))


def of_study(analysis: Analysis) -> dict[str, str]:
    """Parameters of the parent run."""
    study = analysis.study
    return {
        "engine": ", ".join(str(section.get("kind")) for section in study.engine),
        "model": redact(", ".join(str(section.get("model")) for section in study.engine)),
        "workload": str(study.workload.get("kind")),
        "objectives": ", ".join(f"{objective.direction} {objective.name}" for objective in study.objectives),
        "constraints": ", ".join(constraint.name for constraint in study.constraints) or "none",
        "sampler": study.search.sampler,
        "seed": str(study.search.seed),
        "budget.trials": str(study.budget.trials),
        "budget.gpu_minutes": str(study.budget.gpu_minutes),
    }


def metric_key(text: str) -> str:
    """A metric name with only the characters MLflow allows."""
    for symbol, word in (("<=", "at most"), (">=", "at least"), ("@", "at"), ("=", " ")):
        text = text.replace(symbol, word)
    return re.sub(r"\s+", " ", re.sub(r"[^\w\-. :/]", "_", text)).strip()[:250]


def notes_text(notes: Sequence[Note]) -> str:
    """What the ledger keeps beside trials, as JSON, secrets masked."""
    return json.dumps([{"kind": note.kind, "payload": masked(dict(note.payload)), "at": note.at} for note in notes], indent=1)


def logs(record: TrialRecord, study: Path | None) -> dict[str, str]:
    """The ends of the trial's own text files, secrets masked, by their path below the trial's folder."""
    folder = (study or Path()) / record.folder if record.folder else None
    if folder is None or not folder.is_dir():
        return {}
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in LOG_SUFFIXES and path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): _tail(path) for path in files[:30]}


def _tail(path: Path) -> str:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - MAX_LOG_BYTES))
        text = stream.read().decode(errors="replace")
    return redact(text) if size <= MAX_LOG_BYTES else f"[the first {size - MAX_LOG_BYTES} bytes are left out]\n{redact(text)}"


def _params(analysis: Analysis, record: TrialRecord, names: tuple[str, ...]) -> dict[str, str]:
    one = analysis.default_candidate
    default = one.records[0].effective if one else {}
    values = {name: record.configuration.values.get(name, record.effective.get(name, default.get(name))) for name in names}
    texts = {"engine": record.configuration.engine} | {
        name: _text(name, value) for name, value in values.items() if value is not None
    }
    return {_parameter_key(name): text[:MAX_PARAMETER] for name, text in texts.items()}


def _text(name: str, value: Any) -> str:
    if name.startswith("env.") and is_secret_name(name):
        return "***"
    return redact(value if isinstance(value, str) else json.dumps(value))


def _parameter_key(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _metrics(analysis: Analysis, record: TrialRecord, at: int) -> list[Point]:
    points = [Point(f"seconds/{metric_key(phase)}", value, 0, at) for phase, value in record.seconds.items()]
    if record.measurement is None:
        return points
    single = {metric_key(name): value for name, value in record.measurement.totals.items()}
    drift = analysis.quality.drift(record)
    single |= {"logprob_drift": drift.nats} if drift else {}
    found = analysis.score(record)
    if found is not None:
        single |= dict(zip(map(metric_key, analysis.objective_names), found.values, strict=True))
        names = [metric_key(f"violation of {constraint.name}") for constraint in analysis.study.constraints]
        single |= dict(zip(names, found.violations, strict=True))
    points += [Point(name, value, 0, at) for name, value in single.items()]
    for index, row in enumerate(record.measurement.rows):
        level, step = _step(row, index)
        points += [
            Point(metric_key(f"{level}/{name}"), value, step, at) for name, value in row.metrics.items() if row.invalid is None
        ]
    return points


def _step(row: Row, index: int) -> tuple[str, int]:
    """The level's name and its value as a step; where it is no whole number, the row's place instead, and the name says so."""
    for name, value in row.level.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (name, int(value)) if float(value).is_integer() else (f"{name} by row", index)
    return "row", index


def tags_of(analysis: Analysis, record: TrialRecord, study_id: str) -> dict[str, str]:
    """Tags of a child run: what it is found by, how it ended, and whether it stands on the front now."""
    failed = analysis.failure(record)
    found = analysis.score(record)
    tags = {
        "autotune.study_id": study_id,
        "autotune.study": analysis.name,
        "autotune.role": "trial",
        "autotune.trial": str(record.number),
        "autotune.key": key_of(record),
        "autotune.attempt": str(record.attempt),
        "autotune.outcome": "failed" if failed else "measured",
        "autotune.kind": analysis.outcome(record),
        "autotune.origin": str(record.origin),
        "autotune.front": analysis.membership.get(record.number, "no"),
        "autotune.feasible": "unknown" if found is None else "yes" if found.feasible else "no",
        "autotune.configuration": record.configuration.digest,
    }
    if failed:
        tags |= {"autotune.phase": str(failed.phase), "mlflow.note.content": _note(failed)}
    if check := analysis.quality.check(record.configuration):
        tags["autotune.quality"] = check.answer
    if unsteady := analysis.unsteady(record):
        tags["autotune.unsteady"] = " ".join(unsteady)
    if record.reused_from:
        tags["autotune.reused_from"] = record.reused_from
    return tags


def _note(failed: Failed) -> str:
    lines = "\n".join(redact(line) for line in failed.evidence)
    return f"**{failed.kind}** while in phase {failed.phase}. {redact(failed.advice)}\n\n```\n{lines[:4000]}\n```"


def _texts(record: TrialRecord, failed: Failed | None) -> dict[str, str]:
    texts = {
        "trial.json": json.dumps(masked(record.model_dump(mode="json")), indent=1),
        "effective_configuration.json": json.dumps(masked(dict(record.effective)), indent=1, sort_keys=True),
    }
    if record.command:
        variables = [f"{name}={shlex.quote(value)}" for name, value in redact_env(record.environment).items()]
        texts["launch_command.txt"] = redact(" \\\n  ".join([*variables, shlex.join(record.command)])) + "\n"
    if failed is not None:
        texts["failure.json"] = json.dumps(masked(_dumped(failed)), indent=1)
    return texts


def masked(value: Any, name: str = "") -> Any:
    """A JSON value with every text in it redacted, and what stands under a secret's name masked."""
    match value:
        case str():
            return "***" if value and is_secret_name(name) else redact(value)
        case Mapping():
            return {key: masked(item, str(key)) for key, item in value.items()}
        case list() | tuple():
            return [masked(item) for item in value]
        case _:
            return value


def _dumped(value: Frozen) -> Any:
    return value.model_dump(mode="json")
