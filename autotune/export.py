"""Turns a measured trial of a study into files that launch it, and proves them with the target's own parser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autotune import exporters, finalists, plan, source
from autotune.candidate import Candidate
from autotune.engines.base import Engine, Identity
from autotune.errors import AutotuneError, InvalidInput, Mistake
from autotune.exporters.base import Figure, Winner
from autotune.ledger import STUDY
from autotune.metrics import lookup
from autotune.results import StudyResults
from autotune.secrets import MASK, is_secret_name, redact, redact_named

_ONCE = "It was not measured again beside the default: its figures are the search's own and may owe something to luck."


@dataclass(frozen=True)
class Written:
    """The files of one export; `proof` says what the target's own parser answered."""

    trial: int
    files: tuple[Path, ...]
    proof: str


def export(
    found: StudyResults,
    to: str,
    *,
    store: Path,
    trial: int | None = None,
    pick: str = "winner",
    out: Path | None = None,
    prove: bool = True,
) -> Written:
    """Export one trial, the study's winner unless named otherwise.

    Raises NotFound, NothingMeasured (a failed trial is never exported), InvalidInput (the target's parser refuses it).
    """
    chosen = found.candidate(choose(found, pick) if trial is None else trial)
    check = found.quality.check(chosen.records[0].configuration)
    if check is not None and check.answer == "failed":
        raise AutotuneError(f"Trial {chosen.trial} is not exported. {check}")
    if not chosen.holds:
        raise AutotuneError(f"Trial {chosen.trial} breaks a constraint of the study or failed when repeated, and is not exported.")
    exporter = exporters.get(to)
    won = winner(found, chosen, store)
    if won.engine.kind not in exporter.engines:
        known = ", ".join(exporter.engines)
        raise AutotuneError(f"The exporter {to!r} renders {known}; trial {chosen.trial} ran {won.engine.kind}.")
    files = {name: redact(text) for name, text in exporter.render(won).items()}
    proof = exporter.prove(files, won) if prove else "The files were not proved, as asked."
    proof = " ".join([proof, *won.cautions])
    folder = out or store / found.name / "export" / f"{chosen.trial:04d}-{to}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
            if name.endswith(".sh"):
                (folder / name).chmod(0o755)
    except OSError as error:
        raise AutotuneError(f"Cannot write to {folder}: {error.strerror}.") from error
    return Written(chosen.trial, tuple(folder / name for name in files), proof)


def choose(found: StudyResults, pick: str) -> int:
    """The trial of `winner`, `knee` or `best:METRIC`. Raises InvalidInput, NothingMeasured."""
    if pick == "winner":
        return finalists.winner(found).trial
    if pick == "knee":
        return found.knee()
    name, _, metric = pick.partition(":")
    if name != "best" or not metric:
        raise InvalidInput([Mistake("--pick", f"{pick!r} is not a choice.", allowed="winner, knee, best:METRIC")])
    return found.best(metric)


def winner(found: StudyResults, chosen: Candidate, store: Path) -> Winner:
    """What an exporter needs to know about a candidate."""
    study, record = found.study, chosen.records[0]
    engine = plan.engines_of(study, source.read((found.folder or store / study.name) / STUDY))[record.configuration.engine]
    identity = _identity(engine, found)
    # The machine that exports may be another one than the machine that measured.
    effective = {**record.effective, "device": "cpu" if identity.device == "cpu" else "cuda"}
    values = engine.explicit(record.configuration, plan.cache_of(store), effective)
    env = {name.removeprefix("env."): str(value) for name, value in values.items() if name.startswith("env.")}
    withheld = _withheld(engine)
    # A node of a cluster has a shell of its own, which this machine's study does not know.
    told = {} if study.executor.kind == "ray" else identity.variables
    options = engine.options.model_dump(mode="json", exclude_unset=True)
    options["fixed"] = {name: value for name, value in engine.options.fixed.items() if name not in withheld}
    when = datetime.fromtimestamp(record.started_at, UTC).date().isoformat() if record.started_at else ""
    return Winner(
        study=study.name,
        trial=chosen.trial,
        engine=identity,
        model=engine.options.model,
        model_path=engine.model_path(plan.cache_of(store)),
        configuration=record.configuration,
        parameters={name: value for name, value in values.items() if not name.startswith("env.") and name not in withheld},
        env={name: value for name, value in {**told, **engine.options.env, **env}.items() if name not in withheld},
        interpreter=engine.options.python,
        gpus=len(record.gpus),
        options=options,
        figures=tuple(_figures(found, chosen)),
        measured_on=f"{when} on {identity.device}".strip(),
        cautions=_cautions(found, chosen, withheld),
        unsteady=tuple(dict.fromkeys(reason for record in chosen.records for reason in found.unsteady(record))),
    )


def _withheld(engine: Engine) -> list[str]:
    """Variables and parameters that hold a credential: a masked one would take the place of what is set where a file is used."""
    variables = [name for name, value in engine.options.env.items() if is_secret_name(name) or MASK in redact(value)]
    return variables + [name for name, value in engine.options.fixed.items() if MASK in redact_named(name, json.dumps(value))]


def _cautions(found: StudyResults, chosen: Candidate, withheld: Sequence[str] = ()) -> tuple[str, ...]:
    """That the study forbids it, that its numbers were not measured again, that nobody looked at its answers, and what it lacks."""
    rule = chosen.forbidden
    unwanted = [f"The study forbids this configuration, and it was named all the same: {rule}"] if rule else []
    once = [] if chosen is found.default_candidate or finalists.confirmed(chosen) else [_ONCE]
    check = found.quality.check(chosen.records[0].configuration)
    lacks = [f"Set {', '.join(withheld)} where it is launched: a credential is not written down."] if withheld else []
    return (*unwanted, *once, *([str(check)] if check is not None and check.answer == "not checked" else []), *lacks)


def _identity(engine: Engine, found: StudyResults) -> Identity:
    """The engine that was measured, as the study's own notes have it; the installed one may be newer by now."""
    for note in reversed(found.notes):
        if note.kind == "engines" and engine.kind in note.payload:
            return Identity.model_validate(note.payload[engine.kind])
    return engine.identity()


def _figures(found: StudyResults, chosen: Candidate) -> list[Figure]:
    base = found.default_candidate
    figures = []
    for objective in found.study.objectives:
        interval = found.interval(chosen, objective)
        default = None if base is None else found.mean(base, objective)
        figures.append(
            Figure(
                metric=objective.name,
                value=found.mean(chosen, objective),
                unit=lookup(objective.selector.metric).unit,
                low=None if interval is None else interval.low,
                high=None if interval is None else interval.high,
                default=default,
            )
        )
    return figures
