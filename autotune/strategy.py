"""What the search of a study starts from: the feasibility ladder and the first trials, built from its plan."""

from __future__ import annotations

from collections.abc import Callable

from autotune import gpu, models
from autotune.feasibility.ladder import Known, Ladder
from autotune.ledger import Ledger
from autotune.plan import Plan
from autotune.search import warm_start
from autotune.search.driver import Driver, First
from autotune.trial import Configuration, Origin

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
    )


def ladder(plan: Plan) -> Ladder:
    """What may be cut before a launch, as far as each engine's model and this machine are known."""
    gpus = len(gpu.devices()) or None
    known = {}
    for kind, engine in plan.engines.items():
        resolved = plan.resolved.get(kind, {})
        known[kind] = Known(
            resolved=resolved,
            model=models.facts(engine.options.model) if engine.serves == "http" else None,
            memory=engine.memory_model(resolved),
            gpus=gpus if engine.gpus_needed(Configuration(engine=kind)) else None,
        )
    return Ladder(plan.space, known)


def first_trials(plan: Plan, ledger: Ledger, cold: bool, say: Callable[[str], None]) -> list[First]:
    """Fronts of related studies, then the user's configurations; decided once for a study."""
    for note in ledger.notes:
        if note.kind == FIRST and note.payload["space"] == plan.space.digest:
            return [First.model_validate(first) for first in note.payload["trials"]]
    found: list[First] = []
    if plan.study.search.warm_start and not cold:
        for offer in warm_start.offers(plan.store, plan.study, plan.identities, plan.space, plan.resolved):
            say(f"A related study offers a first trial: {offer}.")
            found.append(First(configuration=offer.configuration, origin=Origin.WARM_START))
    found += [First(configuration=configuration, origin=Origin.USER) for configuration in plan.first]
    ledger.note(FIRST, {"space": plan.space.digest, "trials": [first.model_dump(mode="json") for first in found]})
    return found
