from __future__ import annotations

import numpy as np
import pytest

from autotune.engines._recorded.recording import load
from autotune.score import Objective, Selector
from autotune.search.prior import Roofline, agreement, pick
from autotune.trial import Configuration
from autotune.workloads.base import RequestShape

RECORDING = load("vllm-0.26.0-llama8b")


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


def test_picks_follow_the_objectives():
    pool = [configuration(max_num_seqs=seqs, gpu_memory_utilization=0.9) for seqs in (8, 512, 64)]
    fast = Objective(selector=Selector.parse("output_tokens_per_s"), direction="maximize")
    calm = Objective(selector=Selector.parse("tpot_ms.p99"), direction="minimize")
    random = np.random.default_rng(0)
    assert pick(roofline("chat", 512).predict, [fast], pool, random) == 1
    assert pick(roofline("chat", 512).predict, [calm], pool, random) == 0
    unknown = Objective(selector=Selector.parse("reward"), direction="maximize")
    assert pick(roofline("chat", 512).predict, [unknown], pool, random) is None


def test_agreement_needs_three_pairs_and_spread():
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([1, 1, 1], [1, 2, 3]) is None
    assert agreement([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert agreement([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
