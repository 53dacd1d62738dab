"""The search of a plan, put together: what is cut before a launch, what is tried first, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autotune import gpu, models
from autotune.feasibility.ladder import Known, Ladder
from autotune.ledger import Ledger
from autotune.plan import Plan
from autotune.search import warm_start
from autotune.search.driver import Driver, First, Prior
from autotune.search.prior import Roofline, pick
from autotune.search.warm_start import Offer
from autotune.trial import Configuration, Origin

WARM_START = "warm-start"
"""The ledger's note of what earlier studies offered when this one began: a resumed study must not choose anew."""


def driver(plan: Plan, ledger: Ledger, cold: bool, say: Callable[[str], None]) -> Driver:
    """The driver of a study that begins or goes on."""
    study = plan.study
    rungs = ladder(plan)
    taken = offers(plan, ledger, cold)
    if taken and not ledger.records:
        say(f"Tries first what did well in related studies: {', '.join(map(str, taken))}.")
    return Driver(
        plan.space,
        [objective.direction for objective in study.objectives],
        [constraint.name for constraint in study.constraints],
        study.search,
        first=[
            *(First(configuration=offer.configuration, origin=Origin.WARM_START) for offer in taken),
            *(First(configuration=configuration) for configuration in plan.first),
        ],
        resolved=plan.resolved,
        feasible=rungs.feasible,
        learn=rungs.learn,
        prior=prior(plan),
    )


def ladder(plan: Plan) -> Ladder:
    """What the plan's engines, models and machine are known to be unable to do."""
    devices = None if plan.study.executor.kind == "ray" else len(gpu.devices()) or None
    known: dict[str, Known] = {}
    for kind, engine in plan.engines.items():
        resolved = plan.resolved.get(kind, {})
        facts = models.facts(engine.options.model)
        known[kind] = Known(resolved, facts, engine.memory_model(resolved), devices)
    return Ladder(plan.space, known)


def offers(plan: Plan, ledger: Ledger, cold: bool) -> list[Offer]:
    """What related studies offer, as noted when this study began."""
    noted = [note.payload["offers"] for note in ledger.notes if note.kind == WARM_START]
    if noted:
        return [Offer.model_validate(offer) for offer in noted[-1]]
    found: list[Offer] = []
    if plan.study.search.warm_start and not cold and not ledger.records:
        found = warm_start.offers(plan.store, plan.study, plan.identities, plan.space, plan.resolved)
    ledger.note(WARM_START, {"offers": [offer.model_dump(mode="json") for offer in found]})
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

    def choose(pool: Sequence[Configuration], random: np.random.Generator) -> int | None:
        return pick(predict, plan.study.objectives, pool, random)

    return choose
