"""What a study will do, before it does it: parameters, first command lines, trials and minutes expected."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from autotune import bar, gpu, ledger, notes
from autotune.engines.base import Context, Engine, Identity
from autotune.errors import AutotuneError
from autotune.executors.base import side_by_side
from autotune.parameters import Parameter
from autotune.plan import Plan
from autotune.search.screening import trials_affordable
from autotune.secrets import redact, redact_env
from autotune.trial import Configuration, Frozen, Scalar, Value


class ParameterLine(Frozen):
    """One parameter as the preview shows it."""

    engine: str
    name: str
    canonical: str | None
    values: str
    default: Value
    when: str | None
    about: str


class TrialLine(Frozen):
    """One of the trials that will run first."""

    configuration: Configuration
    why: str
    command: str
    """The exact command line; the port is chosen anew at each launch."""
    environment: Mapping[str, str] = Field(default_factory=dict)


class Expected(Frozen):
    """What the study is expected to cost."""

    trials: int
    """At most, those of the finalists' rounds included."""
    finals: int
    """Those of the finalists' rounds alone."""
    at_once: int
    """How many run at a time; 1 where the study leaves that to a cluster."""
    seconds_per_trial: float | None
    """Median of this store's earlier trials of the engine where there are any; otherwise None, since a start cannot be guessed."""
    workload_seconds: float
    minutes: float | None
    limit_gpu_minutes: float | None
    affordable: int | None
    """How many trials of that length these minutes buy, where they end the search before its last trial."""


class Preview(Frozen):
    """Everything `autotune check` shows."""

    study: str
    store: Path
    identities: Mapping[str, Identity]
    objectives: tuple[str, ...]
    constraints: tuple[str, ...]
    levels: tuple[Mapping[str, Scalar], ...]
    climbs: bool
    """Whether further levels are found by a climb to an SLO."""
    parameters: tuple[ParameterLine, ...]
    rules: tuple[str, ...]
    """Of the rules, those that read what this study tunes."""
    size: float | None
    """Points of the space; None when it is continuous."""
    first: tuple[TrialLine, ...]
    ends_early: str
    """When a trial is ended before its last load level; empty where none is."""
    expected: Expected
    warnings: tuple[str, ...]


def preview(plan: Plan) -> Preview:
    """The preview of a plan; command lines are shown when the engine is installed."""
    size = plan.space.size()
    return Preview(
        study=plan.study.name,
        store=plan.store,
        identities=plan.identities,
        objectives=tuple(f"{objective.direction} {objective.name}" for objective in plan.study.objectives),
        constraints=tuple(constraint.name for constraint in plan.study.constraints),
        levels=plan.workload.levels(),
        parameters=tuple(_parameters(plan)),
        climbs=_climbs(plan),
        rules=tuple(str(rule) for space in plan.space.engines.values() for rule in space.telling()),
        size=None if size == float("inf") else size,
        first=tuple(_first(plan)),
        ends_early=_ends_early(plan),
        expected=_expected(plan),
        warnings=tuple(notes.on(plan, _at_once(plan))),
    )


def _parameters(plan: Plan) -> Iterator[ParameterLine]:
    for kind, space in plan.space.engines.items():
        for name, parameter in space.parameters.items():
            canonical = parameter.canonical
            yield ParameterLine(
                engine=kind,
                name=name,
                canonical=None if canonical is None else canonical.name + (" (inverted)" if canonical.invert else ""),
                values=_range(parameter),
                default=plan.resolved.get(kind, {}).get(name),
                when=parameter.when,
                about=parameter.about,
            )


def _range(parameter: Parameter) -> str:
    """A parameter's values as a short text."""
    shape = parameter.model_dump(exclude_unset=True)
    if "values" in shape:
        return ", ".join(str(value) for value in shape["values"])
    if "low" in shape:
        step = (
            " x2"
            if shape["kind"] == "power_of_two"
            else " log"
            if shape.get("log")
            else f" step {shape['step']}"
            if shape.get("step")
            else ""
        )
        return f"{shape['low']} .. {shape['high']}{step}"
    return {"flag": "false, true", "derived": f"= {shape.get('expr')}", "fixed": f"= {shape.get('value')}"}[shape["kind"]]


def _first(plan: Plan) -> Iterator[TrialLine]:
    for why, configurations in (("the engine's default", plan.defaults()), ("named by the study", plan.first)):
        for configuration in configurations:
            command, environment = _launch(plan, configuration)
            yield TrialLine(configuration=configuration, why=why, command=command, environment=environment)


def _launch(plan: Plan, configuration: Configuration) -> tuple[str, dict[str, str]]:
    if configuration.engine not in plan.identities:
        return "", {}
    folder = plan.folder / "trials" / "NNNN"
    context = Context(study=plan.study.name, trial=0, tag="preview", folder=folder, scratch=folder, cache=plan.cache)
    launch = plan.engines[configuration.engine].launch(configuration, context)
    return redact(shlex.join(launch.argv)), redact_env(launch.env)


def _climbs(plan: Plan) -> bool:
    return "slo_request_rate" in plan.workload.metrics()


def _ends_early(plan: Plan) -> str:
    search = plan.study.search
    several = len(plan.workload.levels()) > 1 or _climbs(plan)
    if not search.early_exit or plan.workload.needs == "training" or not (several or search.probe_s):
        return ""
    probe = f"a first pass of {search.probe_s:g} s over the levels, and after " if search.probe_s else ""
    return (
        f"After {probe}each load level a trial of the search ends once it cannot reach the front: at {bar.CONFIDENCE:.0%} "
        f"confidence it would add less than {bar.LEAST_GAIN:.1%} of the front's hypervolume, or breaks a constraint."
    )


def _expected(plan: Plan) -> Expected:
    measured = [seconds for engine in plan.engines.values() for seconds in _history(plan.store, engine)]
    workload = plan.workload.expected_seconds()
    overhead = statistics.median(measured) if measured else None
    finals, at_once = plan.study.finalists.trials, _at_once(plan)
    trials = plan.study.search_trials + finals
    per_trial, limit = None if overhead is None else overhead + workload, plan.study.budget.gpu_minutes
    bought = None if per_trial is None else trials_affordable(per_trial / 60 * max(1, _need(plan)), limit)
    return Expected(
        trials=trials,
        finals=finals,
        at_once=at_once,
        seconds_per_trial=per_trial,
        workload_seconds=workload,
        minutes=None if per_trial is None else trials * per_trial / 60 / at_once,
        limit_gpu_minutes=limit,
        affordable=int(bought) if bought is not None and bought < plan.study.search_trials else None,
    )


def _need(plan: Plan) -> int:
    """GPUs that a trial of the hungriest default takes."""
    return max(engine.gpus_needed(Configuration(engine=kind)) for kind, engine in plan.engines.items())


def _at_once(plan: Plan) -> int:
    """Trials that run at a time, as far as it is known before the executor has looked at its machines."""
    asked = plan.study.executor.parallel
    if plan.executor == "inline":
        return 1
    if plan.executor != "local":
        return asked if isinstance(asked, int) else 1
    return max(1, side_by_side(_need(plan), len(gpu.devices()) or None, asked))


def _history(store: Path, engine: Engine) -> Iterator[float]:
    """Seconds beside the workload of every measured trial of this engine kind in the store."""
    for folder in ledger.studies(store):
        try:
            records = ledger.read(folder).records.values()
        except AutotuneError:
            continue
        for record in records:
            if record.configuration.engine == engine.kind and record.measurement is not None and not record.reused_from:
                spent = [seconds for phase, seconds in record.seconds.items() if phase in ("start", "stop")]
                if spent:
                    yield sum(spent)
