"""What a check says of a study that is not wrong: slips that are allowed, and what will be done about what it asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from autotune import goal_checks
from autotune.metrics import lookup
from autotune.plan import Plan
from autotune.quality import Watched
from autotune.rules import StudyRule
from autotune.score import Selector
from autotune.space import EngineSpace
from autotune.trial import Configuration


def on(plan: Plan, at_once: int) -> Iterator[str]:
    """Sentences on a plan that will run; `at_once` trials of it side by side."""
    yield from _backwards(plan)
    yield from _drowned(plan)
    yield from _thin(plan)
    yield from _fewer_at_once(plan, at_once)
    named = (*plan.defaults(), *plan.first)
    yield from goal_checks.Goals(plan.study, plan.space, plan.engines, plan.resolved, named).notes()
    for kind, space in plan.space.engines.items():
        watched = plan.guard.engines[kind]
        if watched.lossy:
            yield f"{kind}: {', '.join(watched.lossy)} can change the model's answers; {_checked(plan, watched)}"
        yield from _rules(plan, kind)
        yield from _untuned(kind, space)
        yield from _told_by_shell(plan, kind)
        roles = {name: parameter.role for name, parameter in space.sampled()}
        yield from (f"{kind}: {caution}" for caution in plan.workload.cautions(roles))
        resolved = plan.resolved.get(kind)
        if resolved and plan.space.encode(Configuration(engine=kind), resolved) is None:
            yield f"{kind}: the default lies outside the search space; it is the baseline and is not shown to the sampler."
    if len(named) > plan.study.budget.trials:
        budget = plan.study.budget.trials
        yield f"{len(named)} trials are named, the defaults among them, and {budget} are the budget: the last are left out."
    if plan.study.budget.trials < 2 * len(plan.study.objectives) + 3:
        trials, goals = plan.study.budget.trials, len(plan.study.objectives)
        few = f"{trials} trial{'s are' if trials > 1 else ' is'} few for {goals} objective{'s' if goals > 1 else ''}"
        yield f"{few}; expect little beyond the default."


def _backwards(plan: Plan) -> Iterator[str]:
    """Goals that ask for the worse end of their metric: allowed, and more often a slip."""
    asked = [(objective.name, objective.selector, objective.direction) for objective in plan.study.objectives]
    bounds = [(one.name, one.selector, "minimize" if one.op == "<=" else "maximize") for one in plan.study.constraints]
    for name, selector, direction in [*asked, *bounds]:
        better = lookup(selector.metric).direction
        if better not in ("none", direction):
            end = "higher" if better == "maximize" else "lower"
            yield f"{name}: {end} is better for this metric, and the study asks for the opposite."


def _goals(plan: Plan) -> Iterator[tuple[str, Selector]]:
    """What is scored, by its name: objectives and constraints."""
    yield from ((one.name, one.selector) for one in plan.study.objectives)
    yield from ((one.name, one.selector) for one in plan.study.constraints)


def _drowned(plan: Plan) -> Iterator[str]:
    """Goals that a climb to an SLO turns into something else: the further it gets, the worse they look."""
    if "slo_request_rate" not in plan.workload.metrics():
        return
    for name, selector in _goals(plan):
        if selector.key is None and lookup(selector.metric).scope == "row":
            yield (
                f"{name}: this is taken over every rate that the climb tries, those that break its bounds among them; "
                "slo_request_rate and slo_goodput_per_s are what the climb finds."
            )


def _thin(plan: Plan) -> Iterator[str]:
    """Percentiles of so few requests that a single one decides them."""
    for name, selector in _goals(plan):
        statistic = selector.metric.partition(".")[2]
        if not statistic.startswith("p"):
            continue
        share = 1 - float(statistic[1:]) / 100
        levels = [{selector.key: selector.value}] if selector.key is not None else plan.workload.levels()
        known = [count for level in levels if (count := plan.workload.requests(level)) is not None]
        if known and (fewest := min(known)) * share < 1:
            longer = math.ceil(10 / share / fewest) / 10
            yield (
                f"{name}: this rests on about {fewest:.0f} requests, so it is the slowest one of them. Make the window {longer:g} "
                "times as long (workload.window.measure_s), or take a lower percentile."
            )


def _rules(plan: Plan, kind: str) -> Iterator[str]:
    """Rules of the study that do not do what they seem to."""
    space, resolved = plan.space.engines[kind], plan.resolved.get(kind)
    telling, broken = list(space.telling()), list(space.own_rules().broken(Configuration(engine=kind)))
    for rule in (rule for rule in space.forbid if isinstance(rule, StudyRule) and resolved):
        if rule not in telling:
            yield f"{kind}: the rule {rule.rule!r} reads nothing that this study tunes, so it forbids nothing."
        elif rule in broken:
            yield f"{kind}: the rule {rule.rule!r} holds of the default, measured all the same as the baseline; it cannot win."


def _untuned(kind: str, space: EngineSpace) -> Iterator[str]:
    """What a study over several engines tunes by a name of another one alone."""
    if space.untuned:
        names = " and ".join(map(repr, space.untuned))
        shared = [f"{name!r} is {neutral!r} for both" for name, neutral in space.untuned.items() if neutral is not None]
        better = f"; {', '.join(shared)}" if shared else ""
        yield f"{kind}: not tuned here is what the study tunes by the names of another engine alone, {names}{better}."


def _told_by_shell(plan: Plan, kind: str) -> Iterator[str]:
    """What reaches the trials although the study does not say it."""
    identity = plan.identities.get(kind)
    own = plan.engines[kind].options.env
    told = [f"{name}={value}" for name, value in identity.variables.items() if name not in own] if identity is not None else []
    if told:
        yield f"{kind}: {' and '.join(told)} of this shell reaches every trial; under engine.env the study itself says so."


def _fewer_at_once(plan: Plan, found: int) -> Iterator[str]:
    """That more trials at once are asked for than will run."""
    asked = plan.study.executor.parallel
    if not isinstance(asked, int) or asked <= found:
        return
    if plan.executor == "inline":
        why = "the executor 'inline' runs trials one after the other; 'kind: local' runs them side by side."
        yield f"executor.parallel: {asked} has no effect: {why}"
    else:
        yield f"executor.parallel: {asked} is more than this machine's GPUs have room for, so trials run {found} at a time."


def _checked(plan: Plan, watched: Watched) -> str:
    """What will be done about that."""
    if watched.unchecked is not None:
        return f"that will not be checked, because {watched.unchecked}. Check a winner's quality before you deploy it."
    limit, asked = plan.study.quality.max_drift_nats, len(plan.workload.prompts)
    return f"finalists must answer {asked} fixed prompts within {limit:g} nats a token of the default's log-probabilities."
