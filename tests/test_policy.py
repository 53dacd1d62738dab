from __future__ import annotations

import pytest

from autotune import plan, policy
from autotune.ledger import Ledger
from autotune.trial import Origin

STUDY = """\
name: {name}
engine: {{kind: recorded}}
workload: {{kind: recorded, traffic: {traffic}}}
search_space: {{include: recorded}}
objectives: [{{maximize: output_tokens_per_s @ concurrency={concurrency}}}, {{minimize: peak_gpu_memory_gib}}]
first_trials: [{{max_num_seqs: 64}}]
budget: {{trials: 8}}
tracking: {{enabled: false}}
"""


@pytest.fixture
def make(tmp_path):
    def make(name: str, traffic: str = "chat", concurrency: int = 512) -> plan.Plan:
        path = tmp_path / f"{name}.yaml"
        path.write_text(STUDY.format(name=name, traffic=traffic, concurrency=concurrency))
        return plan.confirm(plan.read(path, tmp_path / "store"))

    return make


def ran(of: plan.Plan, trials: int, cold: bool = False) -> tuple[list, list[str]]:
    """Asks and answers some trials; returns the proposals and what was said."""
    from autotune.executors import make as make_executor
    from autotune.executors.base import Site
    from autotune.score import score
    from autotune.trial import TrialJob

    said: list[str] = []
    proposals = []
    site = Site(engines=of.engines, workload=of.workload, store=of.store, study=of.study.name)
    with Ledger(of.folder, of.text.text, of.study.identity) as ledger, make_executor("inline", site) as executor:
        ledger.note("engines", {kind: identity.model_dump(mode="json") for kind, identity in of.identities.items()})
        driver = policy.driver(of, ledger, cold, said.append)
        for record in ledger.records.values():
            found = score(record.measurement, of.study.objectives) if record.measurement else None
            driver.tell(record, found)
        for _ in range(trials):
            proposal = driver.ask()
            job = TrialJob(**proposal.model_dump(include={"number", "configuration", "origin", "point"}), seed=0)
            ledger.begin(job)
            executor.submit(job)
            record = executor.collect(0.0)
            ledger.record(record)
            driver.tell(record, score(record.measurement, of.study.objectives) if record.measurement else None)
            proposals.append(proposal)
    return proposals, said


def test_the_default_then_related_fronts_then_the_user_then_the_search(make):
    ran(make("earlier"), 8)
    proposals, said = ran(make("later", "prefix", 256), 8)
    origins = [proposal.origin for proposal in proposals]
    offered = origins.count(Origin.WARM_START)
    assert origins[0] is Origin.DEFAULT and 1 <= offered <= 4
    assert origins[1 : 1 + offered] == [Origin.WARM_START] * offered
    assert origins[1 + offered] is Origin.USER
    assert set(origins[2 + offered :]) == {Origin.SEARCH}
    assert any("of earlier" in sentence for sentence in said)


def test_a_cold_study_takes_nothing_over(make):
    ran(make("earlier"), 8)
    proposals, said = ran(make("later"), 3, cold=True)
    assert [proposal.origin for proposal in proposals] == [Origin.DEFAULT, Origin.USER, Origin.SEARCH]
    assert said == []


def test_a_resumed_study_keeps_the_first_trials_it_began_with(make):
    first, _ = ran(make("study"), 2)
    ran(make("meanwhile"), 8)
    resumed, said = ran(make("study"), 2)
    assert [proposal.number for proposal in first + resumed] == [0, 1, 2, 3]
    assert [proposal.origin for proposal in resumed] == [Origin.SEARCH, Origin.SEARCH]
    assert said == []


def test_the_roofline_is_compared_with_what_was_measured(make):
    of = make("study")
    ran(of, 8)
    records = Ledger(of.folder, of.text.text, of.study.identity)
    with records as ledger:
        said = policy.prior_says(of, ledger.records.values())
    assert len(said) == 2 and "rank correlation" in said[0]


def test_nothing_is_known_of_a_gpu_that_is_not_there(make):
    rungs = policy.ladder(make("study"))
    assert rungs.known["recorded"].gpus is None
    assert rungs.memory["recorded"] is not None
