"""A study of the recorded engine, run through the driver in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from autotune.engines.base import Context
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.feasibility.cut import Cut
from autotune.rules import Rule
from autotune.score import Constraint, Objective, Score, Selector, score
from autotune.search import Driver, Proposal
from autotune.space import EngineSpace, Space, SpaceFile
from autotune.study import Search
from autotune.trial import Configuration, Measured, TrialFailed, TrialRecord
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

OBJECTIVES = (
    Objective(selector=Selector.parse("output_tokens_per_s @ concurrency=512"), direction="maximize"),
    Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize"),
)
CONSTRAINTS = (Constraint.parse("ttft_ms.p99 <= 200 @ request_rate=30"),)
SPACE_FILE = Path(__file__).parents[2] / "search_spaces" / "recorded.yaml"


def space(*rules: Rule) -> Space:
    file = SpaceFile.model_validate(yaml.safe_load(SPACE_FILE.read_text()))
    return Space([EngineSpace(engine="recorded", parameters=file.parameters, forbid=(*file.forbid, *rules))])


def engine(**options: object) -> RecordedEngine:
    return RecordedEngine(RecordedOptions(kind="recorded", **options))


def context(trial: int = 0, attempt: int = 1) -> Context:
    folder = Path("/nowhere")
    return Context(study="s", trial=trial, attempt=attempt, tag="t", folder=folder, scratch=folder, cache=folder, seed=7)


def forbidding(of: Space):
    def feasible(configuration: Configuration) -> Cut | None:
        rule = of.forbidden(configuration)
        return Cut(rule="forbidden", reason=rule.reason, certainty="certain", configuration=configuration) if rule else None

    return feasible


def driver(search: Search | None = None, of: Space | None = None, **more: object) -> Driver:
    of = of or space()
    resolved = {"recorded": engine().preflight([Configuration(engine="recorded")])[0].resolved}
    settings = {"resolved": resolved, "feasible": forbidding(of), **more}
    directions = [objective.direction for objective in OBJECTIVES]
    return Driver(of, directions, [constraint.name for constraint in CONSTRAINTS], search or Search(), **settings)


def run_one(proposal: Proposal, **options: object) -> tuple[TrialRecord, Score | None]:
    ran, where = engine(**options), context(proposal.number)
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded"))
    found = None
    try:
        with ran.open(ran.launch(proposal.configuration, where), where) as session:
            session.wait_ready()
            measurement = workload.run(session, where, lambda label, share: None)
        found = score(measurement, OBJECTIVES, CONSTRAINTS)
        outcome = Measured(measurement=measurement)
    except TrialFailed as error:
        outcome = error.failed
    fields = proposal.model_dump(include={"number", "configuration", "origin", "point"})
    return TrialRecord(**fields, outcome=outcome), found


def run(driver: Driver, trials: int, **options: object) -> list[tuple[Proposal, TrialRecord, Score | None]]:
    told = []
    for _ in range(trials):
        proposal = driver.ask()
        if proposal is None:
            break
        record, found = run_one(proposal, **options)
        driver.tell(record, found)
        told.append((proposal, record, found))
    return told


def replay(driver: Driver, told: Sequence[tuple[Proposal, TrialRecord, Score | None]]) -> Driver:
    for proposal, _, _ in told:
        for cut in proposal.cuts:
            driver.cut(cut)
    for _, record, found in told:
        driver.tell(record, found)
    return driver
