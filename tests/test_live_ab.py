"""The live comparison of two arms: whose fronts are measured again, and what the measurements say. Measurements are made up."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune import plan as plans
from autotune import study as studies
from autotune.errors import AutotuneError
from autotune.ledger import Ledger
from autotune.pareto import Direction
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Outcome, Phase, Row, TrialRecord

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import live_ab  # noqa: E402
from live_ab_judge import Again, gathered, judged, union  # noqa: E402
from live_ab_page import fate, verdict  # noqa: E402

WAYS: tuple[Direction, ...] = ("maximize", "minimize")
ARMS = ("ab-ours", "ab-tpe")
SLO = '["ttft_ms.p99 <= 200", "tpot_ms.p95 <= 25"]'
SHARED = """\
engine: {kind: vllm, model: "synthetic:tiny"}
search_space: {include: vllm, select: [max_num_seqs, gpu_memory_utilization]}
tracking: {enabled: false}
finalists: {count: 0}
"""
TRAFFIC = "traffic: {input_tokens: 64, output_tokens: 16}, window: {measure_s: 12}"
OURS = f"""\
name: ab-ours
{SHARED}
workload: {{kind: http, {TRAFFIC}, load: [{{slo_climb: {{constraints: {SLO}, start: 24, max_steps: 5}}}}]}}
objectives: [{{maximize: slo_goodput_per_s}}, {{minimize: peak_gpu_memory_gib}}]
budget: {{gpu_minutes: 45}}
"""
TPE = f"""\
name: ab-tpe
{SHARED}
workload: {{kind: http, {TRAFFIC}, load: [{{request_rate: 36}}]}}
objectives: [{{maximize: goodput_per_s @ request_rate=36}}, {{minimize: peak_gpu_memory_gib}}]
constraints: ["ttft_ms.p99 <= 200 @ request_rate=36", "tpot_ms.p95 <= 25 @ request_rate=36"]
budget: {{gpu_minutes: 45}}
"""


def parsed(text: str) -> studies.Study:
    return studies.validate(studies.source.parse(text, "study.yaml"))[0]


def outcome(goodput: float | None, memory: float, ttft: float = 100.0) -> Outcome:
    """A climb's totals and a fixed load's row in one; without goodput a climb that found no rate."""
    row = Row(level={"request_rate": 36}, metrics={"goodput_per_s": goodput or 0.0, "ttft_ms.p99": ttft, "tpot_ms.p95": 9.0})
    totals = {"peak_gpu_memory_gib": memory} | ({} if goodput is None else {"slo_goodput_per_s": goodput})
    return Measured(measurement=Measurement(rows=(row,), totals=totals))


def trial(number: int, values: Mapping[str, Any], came: Outcome) -> TrialRecord:
    return TrialRecord(
        number=number,
        configuration=Configuration(engine="vllm", values=values),
        origin=Origin.DEFAULT if not values else Origin.SEARCH,
        outcome=came,
        seconds={"start": 40.0, "measure": 80.0},
        gpus=(0,),
    )


def keep(store: Path, text: str, *trials: tuple[Mapping[str, Any], Outcome]) -> None:
    with Ledger(store / str(yaml.safe_load(text)["name"]), text, "digest") as ledger:
        for number, (values, came) in enumerate(trials):
            ledger.record(trial(number, values, came))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Both arms: ours has three on its front, TPE one, beside a crash and one that breaks the SLO."""
    default: tuple[Mapping[str, Any], Outcome] = ({}, outcome(40.0, 131.0))
    crash = Failed(kind=FailureKind.OUT_OF_MEMORY, phase=Phase.START)
    keep(
        tmp_path,
        OURS,
        default,
        ({"max_num_seqs": 64}, outcome(30.0, 30.0)),
        ({"max_num_seqs": 256}, outcome(44.0, 50.0)),
        ({"max_num_seqs": 32}, outcome(20.0, 25.0)),
        ({"max_num_seqs": 8}, outcome(None, 26.0)),
    )
    keep(
        tmp_path,
        TPE,
        ({}, outcome(35.0, 131.0)),
        ({"max_num_seqs": 128}, outcome(36.0, 60.0)),
        ({"max_num_seqs": 16}, outcome(35.0, 28.0, ttft=900.0)),
        ({"gpu_memory_utilization": 0.1}, crash),
    )
    return tmp_path


def rounds(store: Path, values: Mapping[int, tuple[float | None, float]]) -> None:
    """Run both rounds: what each `max_num_seqs` gives, a little less in the second."""
    for number, name in enumerate(("ab-front-1", "ab-front-2")):
        text = (store / f"{name}.yaml").read_text()
        again = [({}, outcome(40.0 - number, 131.0))]
        for one in yaml.safe_load(text)["first_trials"]:
            goodput, memory = values[one["max_num_seqs"]]
            again.append((one, outcome(None if goodput is None else goodput * (1 - 0.01 * number), memory)))
        keep(store, text, *again)


def test_rounds_hold_both_fronts_once_the_second_in_reverse(store: Path) -> None:
    paths = live_ab.write_rounds(store, store, most=5)
    made = [studies.load(path)[0] for path in paths]
    chosen = [[one["max_num_seqs"] for one in each.first_trials] for each in made]
    assert sorted(chosen[0]) == [32, 64, 128, 256] and chosen[1] == chosen[0][::-1]
    assert [each.search.seed for each in made] == [1001, 1002]
    assert all(each.budget.trials == 5 and not each.search.early_exit and not each.finalists.count for each in made)
    climb = made[0].workload["load"][0]["slo_climb"]
    assert (climb["start"], climb["precision"], climb["max_steps"]) == (21.6, 0.05, 6)
    assert made[0].workload["window"]["measure_s"] == 15.0
    assert made[0].objectives == parsed(OURS).objectives and not made[0].constraints
    assert plans.read(paths[0], store).first, "a plan can be made of it"


def test_the_page_tells_who_is_ahead(store: Path) -> None:
    live_ab.write_rounds(store, store, most=5)
    rounds(store, {32: (20.0, 25.0), 64: (30.0, 30.0), 128: (36.0, 60.0), 256: (44.0, 50.0)})
    page = live_ab.table(store, most=5)
    assert "**Verdict: ab-ours is ahead.**" in page
    assert "| could not start | 0 (0.0) | 1 (2.0) |" in page
    assert "| broke the SLO | 1 (2.0) | 1 (2.0) |" in page
    assert "| wasted: could not start or failed later | 0% | 25% |" in page
    assert "| max_num_seqs=256 | 44 |  | 43.78 [" in page


def test_a_member_that_keeps_no_rate_adds_nothing(store: Path) -> None:
    live_ab.write_rounds(store, store, most=5)
    rounds(store, {32: (20.0, 25.0), 64: (30.0, 30.0), 128: (None, 60.0), 256: (44.0, 50.0)})
    page = live_ab.table(store, most=5)
    assert "| ab-tpe | 1 | 0 | 0 |" in page
    assert "slo_goodput_per_s 0, peak_gpu_memory_gib 141.6." in page
    assert "**Verdict: no ratio.** ab-tpe found nothing" in page
    assert "0 measured, 1 kept the SLO at no rate, 1 kept the SLO at no rate" in page


def test_larger_fronts_are_thinned_out_with_both_ends(tmp_path: Path) -> None:
    keep(tmp_path, OURS, *(({"max_num_seqs": 8 * step}, outcome(10.0 + step, 20.0 + step)) for step in range(1, 10)))
    found = live_ab.results.load("ab-ours", tmp_path)
    assert [one.trial for one in found.along_front(3)] == [0, 4, 8]
    assert len(found.along_front(20)) == 9


def test_arms_take_turns_and_the_default_is_left_out() -> None:
    one, two, three = (Configuration(engine="vllm", values={"max_num_seqs": value}) for value in (1, 2, 3))
    default = Configuration(engine="vllm")
    assert union([[one, two], [three, default, one]]) == [one, three, two]


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("tpot_ms.p95 <= 25", "tpot_ms.p95 <= 30", "SLOs"),
        ("output_tokens: 16", "output_tokens: 32", "workloads"),
        ("max_num_seqs, ", "", "search spaces"),
        ("gpu_minutes: 45", "gpu_minutes: 40", "budgets"),
        ("synthetic:tiny", "synthetic:nano", "engine sections"),
    ],
)
def test_arms_that_differ_in_more_than_their_search_do_not_compare(before: str, after: str, what: str) -> None:
    live_ab.comparable(parsed(OURS), parsed(TPE))
    with pytest.raises(AutotuneError, match=what):
        live_ab.comparable(parsed(OURS), parsed(TPE.replace(before, after)))


def test_the_shipped_arms_compare() -> None:
    ours, tpe = (studies.load(ROOT / "studies" / "h200" / f"{name}.yaml")[0] for name in ARMS)
    live_ab.comparable(ours, tpe)
    assert ours.budget.gpu_minutes == 45 and tpe.search.sampler == "optuna.samplers:TPESampler"
    assert ours.search == studies.Search(warm_start=False), "all other defaults"


NUMBERS = itertools.count()


def again(arm: str, *runs: tuple[float, float]) -> Again:
    values = {"max_num_seqs": next(NUMBERS)}
    return Again(Configuration(engine="vllm", values=values), (arm,) if arm else (), runs, (), {})


def test_hypervolume_is_measured_from_nothing_served() -> None:
    told = judged([again("", (40.0, 110.0), (40.0, 110.0)), again("a", (40.0, 10.0)), again("b", (20.0, 10.0))], WAYS, ("a", "b"))
    assert told.reference.values == (0.0, pytest.approx(120.0))
    assert told.volumes["a"] is not None and told.volumes["a"].estimate == pytest.approx(40 * 110)
    assert told.ratio is not None and told.ratio.estimate == pytest.approx(2.0)


def test_memory_of_a_launch_that_kept_no_rate_still_bounds_the_hypervolume() -> None:
    lost = Again(Configuration(engine="vllm"), (), (), ("kept the SLO at no rate",), {}, partly=((None, 110.0),))
    told = judged([lost, again("a", (40.0, 10.0)), again("b", (20.0, 10.0))], WAYS, ("a", "b"))
    assert told.reference.values == (0.0, pytest.approx(120.0))


def test_noise_as_large_as_the_difference_leaves_it_undecided() -> None:
    both = [again("a", (40.0, 10.0), (30.0, 10.0)), again("b", (30.0, 10.0), (39.0, 10.0))]
    told = judged([again("", (40.0, 110.0), (33.0, 110.0)), *both], WAYS, ("a", "b"))
    assert told.ratio is not None and told.ratio.low < 1 < told.ratio.high
    assert "**Verdict: undecided.**" in verdict(("a", "b"), told)


def test_the_interval_is_that_of_students_t() -> None:
    """For one point alone the draws must give the interval that `estimates` computes."""
    runs = [again("a", (40.0, 10.0), (36.0, 10.0)), again("b", (40.0, 50.0), (41.0, 50.0)), again("", (30.0, 90.0), (33.0, 90.0))]
    told = judged(runs, WAYS, ("a", "b"))
    cell, volume = told.cells[0][0], told.volumes["a"]
    assert volume is not None
    assert math.log(volume.high / volume.estimate) == pytest.approx(math.log(cell.high / cell.estimate), rel=0.15)


def test_nothing_that_keeps_the_slo_is_an_error() -> None:
    lost = Again(Configuration(engine="vllm"), ("a",), (), ("kept the SLO at no rate",), {})
    with pytest.raises(AutotuneError, match="Not one configuration"):
        judged([lost], WAYS, ("a", "b"))


def test_a_machine_fault_is_not_held_against_a_configuration(store: Path) -> None:
    live_ab.write_rounds(store, store, most=5)
    text = (store / "ab-front-1.yaml").read_text()
    fault = Failed(kind=FailureKind.MACHINE_FAULT, phase=Phase.START)
    keep(store, text, ({}, outcome(40.0, 131.0)), ({"max_num_seqs": 256}, outcome(44.0, 50.0)), ({"max_num_seqs": 128}, fault))
    arms = {name: live_ab.results.load(name, store) for name in ARMS}
    found = gathered(arms, [live_ab.results.load("ab-front-1", store)])
    mine = next(one for one in found if one.configuration.values == {"max_num_seqs": 128})
    assert mine.runs == () and mine.without == () and not mine.counts
    assert fate(arms["ab-tpe"], trial(9, {"max_num_seqs": 4}, fault)) == "lost to the machine or interrupted"


def test_the_default_of_each_engine_counts_for_the_front_that_it_is_on(tmp_path):
    """Every study runs all of them first; one that its arm found nothing better than is its arm's find."""
    two = '[{kind: vllm, model: "synthetic:tiny"}, {kind: sglang, model: "synthetic:tiny"}]'
    texts = [
        text.replace('{kind: vllm, model: "synthetic:tiny"}', two).replace(
            "{include: vllm, select: [max_num_seqs, gpu_memory_utilization]}", "{select: [max_concurrent_sequences]}"
        )
        for text in (OURS, TPE, OURS.replace("ab-ours", "ab-front-1"))
    ]
    runs = (("vllm", outcome(40.0, 131.0)), ("sglang", outcome(60.0, 90.0)))
    for text in texts:
        with Ledger(tmp_path / str(yaml.safe_load(text)["name"]), text, "digest") as ledger:
            for number, (engine, came) in enumerate(runs):
                one = trial(number, {}, came)
                ledger.record(one.model_copy(update={"configuration": Configuration(engine=engine)}))
    arms = {name: live_ab.results.load(name, tmp_path) for name in ARMS}
    found = gathered(arms, [live_ab.results.load("ab-front-1", tmp_path)])
    assert [(one.configuration.engine, one.arms, len(one.runs)) for one in found] == [("vllm", (), 1), ("sglang", ARMS, 1)]
