import random
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.trial import Row
from autotune.workloads._load.arrivals import arrivals
from autotune.workloads._load.climb import Climb, parse_bound
from autotune.workloads._load.options import Arrival
from autotune.workloads._load.server_metrics import cross_check, metrics_of, parse
from autotune.workloads._load.warm_up import WarmUp

BOUNDS = [parse_bound("ttft_ms.p99 <= 500")]


def probe(climb, capacity, noise=0.0, draw=None, plateau=None):
    """Walk a climb over a server whose p99 TTFT crosses 500 ms at `capacity`."""
    while (rate := climb.next_rate()) is not None:
        wobble = 1 + (draw.gauss(0, noise) if draw else 0)
        values = {"ttft_ms.p99": 500 * (rate / capacity) ** 2 * wobble, "requests_per_s": min(rate, plateau or rate)}
        climb.observe(rate, Row(level={"request_rate": rate}, metrics=values))
    return climb


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_the_boundary_is_found_within_precision(start, capacity):
    climb = probe(Climb(BOUNDS, start, max_steps=30, precision=0.05), capacity)
    assert climb.found_limit
    assert climb.best <= capacity <= climb.best * 1.05 * 1.0001


def test_it_doubles_first_then_bisects():
    climb = probe(Climb(BOUNDS, 2, max_steps=7, precision=0.01), 20)
    rates = [rate for rate, _, _ in climb.probes]
    assert rates[:5] == [2, 4, 8, 16, 32]
    assert 16 < rates[5] < 32
    assert len(rates) == 7


def test_the_ceiling_is_the_lowest_rate_that_broke():
    climb = Climb(BOUNDS, 2, max_steps=7, precision=0.01)
    seen = []
    while (rate := climb.next_rate()) is not None:
        climb.observe(rate, Row(level={"request_rate": rate}, metrics={"ttft_ms.p99": 500 * rate / 20, "requests_per_s": rate}))
        seen.append(climb.ceiling)
    assert seen[:4] == [None, None, None, None]
    assert seen[4] == 32
    assert seen[4:] == sorted(seen[4:], reverse=True)
    assert climb.best <= 20 <= seen[-1]


@given(st.floats(0.1, 100), st.floats(1, 100))
def test_what_an_engine_does_not_serve_is_no_rate_that_it_sustains(start, served):
    """The SLO is kept at any rate, as one on TPOT may be: 480 requests/s were named of an engine that finished 147."""
    climb = probe(Climb(BOUNDS, start, max_steps=40, precision=0.05), 1e9, plateau=served)
    assert climb.found_limit
    assert served / 1.05 / 1.0001 <= climb.best <= served * 1.05 * 1.0001


def test_doubling_ends_when_throughput_stops():
    climb = probe(Climb(BOUNDS, 1, max_steps=20, precision=0.05), 1e9, plateau=8)
    assert [rate for rate, _, _ in climb.probes][:5] == [1, 2, 4, 8, 16]
    assert max(climb.probes)[0] == 16 and climb.best == pytest.approx(8, rel=0.05)


def test_a_climb_that_began_far_above_what_is_served_says_so():
    climb = probe(Climb(BOUNDS, 64, max_steps=3, precision=0.05), 1e9, plateau=8)
    assert [rate for rate, _, _ in climb.probes] == [64, 128, 32]
    assert climb.best is None
    assert "at 32 requests/s, the lowest, only 8 of them finished a second" in climb.never_met()


@pytest.mark.parametrize("window_s", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("burstiness", [0.1, 0.25, 1.0])
def test_few_arrivals_by_chance_are_no_end_of_throughput(window_s, burstiness):
    """Arrivals at a server that serves 8 a second. One climb in six of those from 5 requests a window ended there."""
    seeds = iter(range(10_000))
    low = 0
    for _ in range(200):
        climb = Climb(BOUNDS, 5 / window_s, 12, 0.1, window_s, Arrival(burstiness=burstiness).dispersion)
        while (rate := climb.next_rate()) is not None:
            due = takewhile(lambda at: at < 10 + window_s, arrivals(rate, burstiness, next(seeds)))
            finished = min(sum(at >= 10 for at in due) / window_s, 8.0)
            values = {"ttft_ms.p99": 100.0 if rate <= 8 else 900.0, "requests_per_s": finished}
            climb.observe(rate, Row(level={"request_rate": rate}, metrics=values))
        low += climb.best is None or climb.best < 4
    assert low <= 2


def test_it_stops_when_throughput_stops_although_arrivals_are_left_to_chance():
    climb = Climb([parse_bound("tpot_ms.p95 <= 50")], 1, 20, 0.05, window_s=20.0)
    while (rate := climb.next_rate()) is not None:
        values = {"tpot_ms.p95": 20.0, "requests_per_s": min(rate, 2.0)}
        climb.observe(rate, Row(level={"request_rate": rate}, metrics=values))
    assert [rate for rate, _, _ in climb.probes][:3] == [1, 2, 4] and max(climb.probes)[0] == 4
    assert climb.best == pytest.approx(2, rel=0.05)


def test_nothing_good_is_said_to_be_nothing():
    climb = probe(Climb(BOUNDS, 8, max_steps=3, precision=0.05), 0.001)
    assert [rate for rate, _, _ in climb.probes] == [8, 4, 2]
    assert climb.best is None
    said = climb.never_met()
    assert "none of the 3 rates that the climb tried kept ttft_ms.p99 <= 500; at 2 requests/s, the lowest, it is broken by" in said


def test_noise_moves_the_boundary_little():
    found = [probe(Climb(BOUNDS, 2, 10, 0.05), 20, 0.05, random.Random(seed)).best for seed in range(50)]
    assert all(17 <= best <= 22 for best in found)


def test_an_invalid_probe_counts_as_broken():
    climb = Climb(BOUNDS, 4, 5, 0.1)
    climb.observe(4, Row(level={}, metrics={}, invalid="Too few finished."))
    assert climb.next_rate() == 2


def test_lower_bounds_are_signed_the_other_way():
    bound = parse_bound("output_tokens_per_s >= 100")
    assert bound.excess({"output_tokens_per_s": 80}) == pytest.approx(0.2)
    assert bound.excess({"output_tokens_per_s": 150}) == pytest.approx(-0.5)
    assert bound.excess({}) > 0


def test_warm_up_waits_until_first_tokens_are_flat():
    warm_up = WarmUp(users=4)
    warm_up.add((at, 2.0 - at * 0.1) for at in range(16))
    assert not warm_up.flat
    warm_up.add((at, 0.5) for at in range(16, 40))
    assert warm_up.flat


def test_warm_up_waits_for_every_user():
    warm_up = WarmUp(users=100)
    warm_up.add((at, 0.5) for at in range(150))
    assert not warm_up.flat


PAGE = """# HELP vllm:num_preemptions_total x
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_total{engine="1",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:generation_tokens_total{engine="0"} 1e3
vllm:broken NaN-ish
"""


def test_prometheus_text():
    assert parse(PAGE) == {
        "vllm:num_preemptions_total": 5.0,
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:generation_tokens_total": 1000.0,
    }


def test_server_metrics_of_a_window():
    first = {"vllm:num_preemptions_total": 5, "vllm:kv_cache_usage_perc": 0.5, "vllm:num_requests_waiting": 9,
             "vllm:prefix_cache_queries_total": 100, "vllm:prefix_cache_hits_total": 50}  # fmt: skip
    last = {**first, "vllm:num_preemptions_total": 7, "vllm:kv_cache_usage_perc": 0.25, "vllm:prefix_cache_queries_total": 200,
            "vllm:prefix_cache_hits_total": 125}  # fmt: skip
    assert metrics_of([(0.0, first), (1.0, last)]) == {
        "kv_cache_usage": 0.5, "queue_depth": 9, "preemptions": 2, "prefix_cache_hit_rate": 0.75,
    }  # fmt: skip
    assert metrics_of([]) == {}
    busy = [(10.0, {"process_cpu_seconds_total": 3.0}), (14.0, {"process_cpu_seconds_total": 6.6})]
    assert metrics_of(busy) == {"frontend_cpu_share": pytest.approx(0.9)}
    assert "preemptions" not in metrics_of([(0.0, first)])


def test_what_sglang_has_not_counted_yet_is_nothing_and_not_unknown():
    """It shows a counter from its first event on: of 52 levels on an H200 none had preemptions, and a bound on them no trial."""
    calm = parse('sglang:num_queue_reqs{tp_rank="0"} 0\nsglang:prompt_tokens_total{is_streaming="true"} 100\n')
    found = metrics_of([(0.0, calm), (1.0, {**calm, "sglang:prompt_tokens_total": 200.0})])
    assert (found["preemptions"], found["prefix_cache_hit_rate"]) == (0, 0)
    began = {"sglang:prompt_tokens_total": 200.0, "sglang:cached_tokens_total": 50.0, "sglang:num_retracted_requests_total": 3.0}
    found = metrics_of([(0.0, calm), (1.0, {**calm, **began})])
    assert (found["preemptions"], found["prefix_cache_hit_rate"]) == (3, 0.5)
    assert "preemptions" not in metrics_of([(0.0, parse("other:x 1\n")), (1.0, parse("other:x 1\n"))])


def test_a_restarted_counter_is_unknown():
    assert cross_check([(0, {"vllm:generation_tokens_total": 9}), (1, {"vllm:generation_tokens_total": 3})], 5) is None


def test_a_gauge_that_is_not_a_number_was_not_measured():
    assert parse("vllm:kv_cache_usage_perc NaN\nvllm:num_requests_waiting +Inf\nvllm:num_preemptions_total 2\n") == {
        "vllm:num_preemptions_total": 2
    }
