from __future__ import annotations

from pathlib import Path

import pytest

from autotune import results
from autotune.engines._recorded.recording import load
from autotune.score import Objective, Selector, value_of
from autotune.search.prior import Begun, Roofline, agreement, pick
from autotune.trial import Configuration
from autotune.workloads.base import RequestShape

RECORDING = load("vllm-0.26.0-llama8b")
RESULTS = Path(__file__).parents[2] / "studies" / "results"


def roofline(kind: str, concurrency: float, device: str = "NVIDIA H200") -> Roofline:
    traffic = RECORDING.about.traffic[kind].model_dump(include={"input_tokens", "output_tokens", "shared_tokens"})
    return Roofline(RECORDING.memory(), device, RequestShape(**traffic, concurrency=concurrency), RECORDING.about.defaults)


def configuration(**values: object) -> Configuration:
    return Configuration(engine="recorded", values=values)


@pytest.mark.parametrize(("kind", "concurrency", "level"), [("chat", 512, 3), ("prefix", 256, 6)])
def test_it_orders_the_recorded_launches(kind, concurrency, level):
    found = roofline(kind, concurrency)
    launches = [launch for launch in RECORDING.launches if launch.levels]
    predicted = [found.predict(configuration(**launch.config))["output_tokens_per_s"] for launch in launches]
    assert agreement(predicted, [launch.levels[level].out_tps for launch in launches]) > 0.9


def test_it_says_nothing_of_an_unknown_card_or_of_what_cannot_start():
    assert roofline("chat", 512, "Some Card").predict(configuration()) == {}
    assert roofline("chat", 512).predict(configuration(gpu_memory_utilization=0.1)) == {}


def test_a_card_is_not_taken_for_another_whose_name_begins_its_own():
    """Read as an L4 an L40 had a third of its bandwidth, and two thirds of its speed in FLOP/s."""
    assert [roofline("chat", 512, f"NVIDIA {name}").card for name in ("L40", "L40S", "L4")] == [
        (0.864e12, 181e12), (0.864e12, 362e12), (0.3e12, 121e12),
    ]  # fmt: skip
    assert roofline("chat", 512, "NVIDIA RTX A1000").card is None
    assert roofline("chat", 512, "NVIDIA GB200").card == (8.0e12, 2250e12)


def test_picks_follow_the_objectives():
    pool = [configuration(max_num_seqs=seqs, gpu_memory_utilization=0.9) for seqs in (8, 512, 64)]
    fast = Objective(selector=Selector.parse("output_tokens_per_s"), direction="maximize")
    calm = Objective(selector=Selector.parse("tpot_ms.p99"), direction="minimize")
    assert pick(roofline("chat", 512).predict, [fast], pool, []) == 1
    assert pick(roofline("chat", 512).predict, [calm], pool, []) == 0
    unknown = Objective(selector=Selector.parse("reward"), direction="maximize")
    assert pick(roofline("chat", 512).predict, [unknown], pool, []) is None


def test_nothing_is_picked_where_an_objective_is_not_predicted():
    """Ordered by memory alone every pick would be the smallest, whatever it serves."""
    pool = [configuration(gpu_memory_utilization=share) for share in (0.2, 0.5, 0.9)]
    memory = Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize")
    unknown = Objective(selector=Selector.parse("energy_joule_per_token"), direction="minimize")
    assert pick(roofline("chat", 512).predict, [memory], pool, []) == 0
    assert pick(roofline("chat", 512).predict, [unknown, memory], pool, []) is None


def test_what_an_slo_lets_an_engine_serve_grows_with_its_graphs_and_with_its_cache():
    predict = roofline("chat", 512).predict

    def sustained(**values):
        return predict(configuration(**values))["slo_goodput_per_s"]

    shared = {"max_num_seqs": 256, "gpu_memory_utilization": 0.9}
    by_graphs = [sustained(**shared, max_cudagraph_capture_size=size) for size in (16, 64, 256, 512)]
    assert by_graphs[0] < by_graphs[1] < by_graphs[2] == by_graphs[3], "a batch is never larger than max_num_seqs"
    by_cache = [sustained(**{**shared, "gpu_memory_utilization": share}) for share in (0.16, 0.24, 0.9)]
    assert by_cache[0] < by_cache[1] <= by_cache[2]
    fast = predict(configuration(**shared, max_cudagraph_capture_size=512))["output_tokens_per_s"]
    assert predict(configuration(**shared, max_cudagraph_capture_size=64))["output_tokens_per_s"] < fast


@pytest.mark.parametrize(
    ("study", "metric", "least"), [("h200-ab-ours", "slo_goodput_per_s", 0.6), ("h200-chat-8b-vllm", "output_tokens_per_s", 0.7)]
)
def test_it_orders_what_studies_measured_on_an_h200(study, metric, least):
    """Their traffic, 256 to 768 tokens in and 64 to 192 out, is not the recording's."""
    shape = RequestShape(input_tokens=512, output_tokens=128, concurrency=256)
    found = Roofline(RECORDING.memory(), "NVIDIA H200", shape, RECORDING.about.defaults)
    records = [record for record in results.read(RESULTS / study).records if record.measurement is not None]
    goal = Selector.parse(metric)
    measured = [value_of(record.measurement, goal) for record in records]
    predicted = [found.predict(configuration(**record.configuration.values))[metric] for record in records]
    assert agreement(predicted, measured) > least


def test_picks_spread_along_the_predicted_front():
    """Each adds most to those before it; where nothing is left to add, the one that holds most is picked again."""
    said = {8: (800.0, 10.0), 64: (900.0, 50.0), 128: (100.0, 5.0), 256: (850.0, 60.0)}

    def predict(one):
        tokens, peak = said[one.values["max_num_seqs"]]
        return {"output_tokens_per_s": tokens, "peak_gpu_memory_gib": peak}

    goals = [
        Objective(selector=Selector.parse("output_tokens_per_s"), direction="maximize"),
        Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize"),
    ]
    pool, begun = [configuration(max_num_seqs=seqs) for seqs in said], []
    for expected in (8, 64, 128, 8):
        chosen = pick(predict, goals, pool, begun)
        assert pool[chosen].values["max_num_seqs"] == expected
        begun.append(Begun(pool[chosen]))


def test_predictions_that_the_measurements_contradict_pick_nothing():
    def predict(one):
        return {"output_tokens_per_s": float(one.values["max_num_seqs"])}

    goal = [Objective(selector=Selector.parse("output_tokens_per_s"), direction="maximize")]
    pool = [configuration(max_num_seqs=seqs) for seqs in (8, 16)]
    right = [Begun(configuration(max_num_seqs=seqs), (float(seqs),)) for seqs in (8, 16, 32, 64)]
    wrong = [Begun(configuration(max_num_seqs=seqs), (1.0 / seqs,)) for seqs in (8, 16, 32, 64)]
    assert pick(predict, goal, pool, right) == 1
    assert pick(predict, goal, pool, wrong[:3]) == 1
    assert pick(predict, goal, pool, wrong) is None
    assert pick(predict, goal, pool, [Begun(one.configuration) for one in wrong]) == 1


def test_what_the_roofline_says_cannot_start_is_not_picked():
    memory = Objective(selector=Selector.parse("peak_gpu_memory_gib"), direction="minimize")
    pool = [configuration(gpu_memory_utilization=0.1), configuration(gpu_memory_utilization=0.5)]
    assert pick(roofline("chat", 512).predict, [memory], pool, [Begun(one) for one in pool]) == 1
    assert pick(roofline("chat", 512).predict, [memory], pool[:1], []) is None


def test_agreement_needs_three_pairs_and_spread():
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([1, 1, 1], [1, 2, 3]) is None
    assert agreement([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert agreement([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)


def test_equal_predictions_agree_with_any_order_of_what_they_predict():
    """Spearman's coefficient by SciPy; ranks by place made it 0.2, and 0 of the one that ranks the wrong way round."""
    assert agreement([1, 1, 1, 2], [3, 2, 1, 4]) == pytest.approx(0.7746, abs=1e-4)
    assert agreement([1, 1, 1, 1, 2], [1, 2, 3, 4, 0.5]) == pytest.approx(-0.7071, abs=1e-4)
