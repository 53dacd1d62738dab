"""The search of a plan, put together: what is cut before a launch, what is tried first, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from autotune import gpu, models
from autotune.candidate import value
from autotune.errors import AutotuneError
from autotune.feasibility.ladder import Known, Ladder
from autotune.ledger import Ledger
from autotune.plan import Plan
from autotune.search import warm_start
from autotune.search.candidates import Prior
from autotune.search.driver import Driver, First
from autotune.search.prior import Begun, Roofline, agreement, pick
from autotune.trial import Configuration, Origin, TrialRecord

FIRST = "first"
"""The ledger's note of the first trials, so that a resumed study keeps those it began with."""


def driver(plan: Plan, ledger: Ledger, cold: bool, say: Callable[[str], None]) -> Driver:
    """The study's driver, knowing nothing yet of what the ledger holds. Raises InvalidInput, MissingPrerequisite."""
    rungs = ladder(plan)
    return Driver(
        plan.space,
        [objective.direction for objective in plan.study.objectives],
        [constraint.name for constraint in plan.study.constraints],
        plan.study.search,
        first=first_trials(plan, ledger, cold, say),
        resolved=plan.resolved,
        feasible=rungs.feasible,
        learn=rungs.learn,
        prior=prior(plan),
    )


def same_engines(plan: Plan, ledger: Ledger) -> None:
    """Refuse to go on with another engine than the one that measured until now, or one told otherwise. Raises AutotuneError."""
    notes = [note.payload for note in ledger.notes if note.kind == "engines"]
    for kind, identity in plan.identities.items() if notes and ledger.records else ():
        before = notes[-1].get(kind)
        if before is None:
            continue
        told = before.get("variables", identity.variables)
        changed = sorted(name for name in told | identity.variables if told.get(name) != identity.variables.get(name))
        if changed:
            was = ", ".join(f"{name}={told[name]}" if name in told else f"{name} not set" for name in changed)
            raise AutotuneError(
                f"The study {plan.study.name!r} was begun with {was} in its shell, and its trials would not be comparable now. Set "
                "that as it was, or run it with --fresh to start anew."
            )
        if (before["version"], before["device"]) == (identity.version, identity.device):
            continue
        raise AutotuneError(
            f"The study {plan.study.name!r} was begun with {kind} {before['version']} on {before['device']}; installed is "
            f"{identity.version} on {identity.device}, and its trials would not be comparable. Run it with --fresh to start "
            "anew, give the study another name, or install what it was begun with."
        )


def ladder(plan: Plan) -> Ladder:
    """What may be cut before a launch, as far as each engine's model and this machine are known."""
    devices = None if plan.study.executor.kind == "ray" else len(gpu.devices()) or None
    known: dict[str, Known] = {}
    for kind, engine in plan.engines.items():
        resolved = plan.resolved.get(kind, {})
        known[kind] = Known(
            resolved=resolved,
            model=models.facts(engine.options.model),
            memory=engine.memory_model(resolved),
            gpus=devices if engine.gpus_needed(Configuration(engine=kind)) else None,
        )
    return Ladder(plan.space, known)


def first_trials(plan: Plan, ledger: Ledger, cold: bool, say: Callable[[str], None]) -> list[First]:
    """Fronts of related studies, then the user's configurations; decided once for a study and its space."""
    for note in reversed(ledger.notes):
        if note.kind == FIRST and note.payload["space"] == plan.space.digest:
            return [First.model_validate(first) for first in note.payload["trials"]]
    found: list[First] = []
    if plan.study.search.warm_start and not cold and not ledger.records:
        for offer in warm_start.offers(plan.store, plan.study, plan.identities, plan.space, plan.resolved):
            say(f"A related study offers a first trial: {offer}.")
            found.append(First(configuration=offer.configuration, origin=Origin.WARM_START))
    found += [First(configuration=configuration, origin=Origin.USER) for configuration in plan.first]
    ledger.note(FIRST, {"space": plan.space.digest, "trials": [first.model_dump(mode="json") for first in found]})
    return found


def rooflines(plan: Plan) -> dict[str, Roofline]:
    """A roofline of each engine whose model, card and traffic are known."""
    shape = plan.workload.request_shape()
    found: dict[str, Roofline] = {}
    for kind, engine in plan.engines.items():
        resolved = plan.resolved.get(kind, {})
        memory = engine.memory_model(resolved)
        if shape is not None and memory is not None and kind in plan.identities:
            roofline = Roofline(memory, plan.identities[kind].device, shape, resolved)
            if roofline.card is not None:
                found[kind] = roofline
    return found


def prior(plan: Plan) -> Prior | None:
    """Orders the first random candidates; None where no roofline can be drawn."""
    known = rooflines(plan)
    if not known:
        return None

    def predict(configuration: Configuration) -> Mapping[str, float]:
        roofline = known.get(configuration.engine)
        return roofline.predict(configuration) if roofline else {}

    def choose(pool: Sequence[Configuration], begun: Sequence[Begun]) -> int | None:
        return pick(predict, plan.study.objectives, pool, begun)

    return choose


def prior_says(plan: Plan, records: Iterable[TrialRecord]) -> list[str]:
    """How well the roofline ranked what was measured since, objective by objective."""
    known = rooflines(plan)
    measured = [record for record in records if record.measurement is not None and record.configuration.engine in known]
    told = [(known[record.configuration.engine].predict(record.configuration), record) for record in measured]
    said = []
    for objective in plan.study.objectives:
        metric = objective.selector.metric.partition(".")[0]
        pairs = [(predicted[metric], value(record, objective)) for predicted, record in told if metric in predicted]
        both = [(predicted, value) for predicted, value in pairs if value is not None]
        found = agreement([predicted for predicted, _ in both], [value for _, value in both])
        if found is not None:
            said.append(
                f"The roofline ranked {len(both)} trials in {objective.name}; its rank correlation with them is {found:.2f}."
            )
    return said
