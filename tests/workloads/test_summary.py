import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import metrics
from autotune.workloads._load.requests import Request, read_log, write_log
from autotune.workloads._load.span import Span
from autotune.workloads._load.summary import ClientHealth, Rules, left, summarise, tokens_between
from autotune.workloads.http import HttpOptions, HttpWorkload

SPAN = Span(1.0, 5.0)
LEVEL = {"concurrency": 4}
RULES = Rules()


def request(number, due=2.0, ttft=0.05, itl=0.01, tokens=5, **changes):
    times = tuple(due + ttft + index * itl for index in range(tokens))
    fields = {
        "number": number, "turn": 0, "status": "finished", "due": due, "sent": due, "times": times, "prompt_tokens": 8,
        "output_tokens": tokens, "asked_prompt_tokens": 8, "asked_output_tokens": tokens,
    }  # fmt: skip
    return Request(**{**fields, **changes})


def health(issued, beats=(0.1,), cpu=0.1):
    return ClientHealth(beats_ms=beats, cpu_share=cpu, issued=issued)


def row_of(requests, rules=RULES, **client):
    return summarise(requests, SPAN, LEVEL, health(client.pop("issued", len(requests)), **client), rules).row


@st.composite
def logs(draw):
    """Up to 30 requests of a level, of every status."""
    found = []
    for number in range(draw(st.integers(1, 30))):
        due = draw(st.floats(0, 6))
        status = draw(st.sampled_from(["finished", "finished", "finished", "failed", "cut"]))
        tokens = draw(st.integers(1, 6))
        found.append(
            request(
                number,
                due,
                draw(st.floats(0.001, 0.5)),
                draw(st.floats(0.0001, 0.05)),
                tokens,
                status=status,
                output_tokens=draw(st.sampled_from([tokens, tokens, tokens, tokens - 1, None])),
            )
        )
    return found


def test_known_numbers():
    requests = [request(number, due=1.0 + number * 0.1, ttft=0.05, itl=0.01, tokens=11) for number in range(10)]
    row = row_of(requests, Rules(bounds={"ttft_ms": 60}))
    assert row.invalid is None
    assert row.metrics["ttft_ms.p50"] == pytest.approx(50)
    assert row.metrics["tpot_ms.p99"] == pytest.approx(10)
    assert row.metrics["itl_ms.mean"] == pytest.approx(10)
    assert row.metrics["e2e_ms.mean"] == pytest.approx(150)
    assert row.metrics["tokens_per_s_per_user"] == pytest.approx(100)
    assert row.metrics["requests_per_s"] == row.metrics["sps"] == pytest.approx(10 / 4)
    assert row.metrics["output_tokens_per_s"] == pytest.approx(110 / 4)
    assert row.metrics["total_tokens_per_s"] == pytest.approx((110 + 80) / 4)
    assert row.metrics["goodput_per_s"] == pytest.approx(10 / 4)
    assert row.metrics["slo_attainment"] == 1


def test_every_metric_is_in_the_table_and_announced():
    options = HttpOptions.model_validate(
        {"traffic": {"input_tokens": 1, "output_tokens": 1}, "load": [{"concurrency": 1}], "goodput": {"ttft_ms": 9}}
    )
    announced = HttpWorkload(options).metrics()
    row = row_of([request(1)], Rules(bounds={"ttft_ms": 60}))
    assert set(row.metrics) <= announced
    for name in announced:
        metrics.lookup(name)


def test_a_request_that_never_finished_attained_nothing():
    slow, cut = request(7, due=1.5, ttft=0.5), request(8, due=1.6, status="cut")
    row = row_of([*(request(number, due=1.0 + number * 0.1) for number in range(6)), slow, cut], Rules(bounds={"ttft_ms": 60}))
    assert row.metrics["slo_attainment"] == pytest.approx(6 / 8)


@given(logs(), st.randoms(use_true_random=False))
def test_order_does_not_matter(requests, shuffler: random.Random):
    shuffled = list(requests)
    shuffler.shuffle(shuffled)
    assert row_of(requests) == row_of(shuffled)


@given(logs(), st.data())
def test_a_truncated_log_is_never_valid(requests, data):
    kept = data.draw(st.integers(0, len(requests) - 1))
    row = row_of(requests[:kept], issued=len(requests))
    assert row.invalid is not None


@given(logs())
def test_a_doubled_request_is_never_valid(requests):
    assert row_of([*requests, requests[0]]).invalid is not None


@given(logs())
def test_dropping_the_unfinished_is_caught_and_they_never_count_as_fast(requests):
    """What is not finished as asked leaves latencies and rates as if it had never been."""
    whole = [each for each in requests if each.status == "finished" and each.miscount(True) is None]
    everything, only_whole = row_of(requests), row_of(whole)
    assert everything.metrics == only_whole.metrics
    asked = [each for each in requests if SPAN.holds(each.due)]
    share = sum(SPAN.holds(each.due) for each in whole) / len(asked) if asked else 0
    assert (everything.invalid is not None) == (share < 0.95)


@given(logs())
def test_rates_are_events_inside_the_window(requests):
    row = row_of(requests, Rules(bounds={"ttft_ms": 100, "tpot_ms": 20}))
    if row.metrics:
        assert row.metrics["goodput_per_s"] <= row.metrics["requests_per_s"]
        assert 0 <= row.metrics["slo_attainment"] <= 1
        total = sum(each.output_tokens or 0 for each in requests)
        assert row.metrics["output_tokens_per_s"] <= total / SPAN.seconds + 1e-9


@given(logs(), st.floats(0.1, 5.9))
def test_tokens_of_two_halves_are_the_whole(requests, middle):
    ends = Span(0, middle), Span(middle, 9)
    assert sum(tokens_between(requests, end) for end in ends) == pytest.approx(tokens_between(requests, Span(0, 9)))


def test_tokens_are_the_servers_not_the_events():
    """Ten tokens in three events: one in the first, the others shared by the rest."""
    one = request(1, due=1.0, tokens=10, times=(2.0, 3.0, 6.0))
    assert tokens_between([one], Span(0, 9)) == pytest.approx(10)
    assert tokens_between([one], SPAN) == pytest.approx(1 + 4.5)


def test_latency_counts_from_the_intended_arrival():
    late = request(1, due=2.0, sent=2.5, times=(2.6, 2.7), tokens=2)
    assert late.ttft_ms == pytest.approx(600)
    assert "client was the bottleneck" in row_of([late]).invalid


@pytest.mark.parametrize(
    ("beats", "cpu", "bad"),
    [((4.9,) * 100, 0.1, False), ((5.1,) * 100, 0.1, True), ((0.1,), 0.95, True), ((0.1,) * 99 + (50.0,), 0.1, False)],
)
def test_client_bottleneck(beats, cpu, bad):
    row = row_of([request(number) for number in range(5)], beats=beats, cpu=cpu)
    assert ("client was the bottleneck" in (row.invalid or "")) == bad


def test_lag_is_weighed_against_a_slow_first_token():
    slow = [request(number, ttft=1.0) for number in range(5)]
    assert row_of(slow, beats=(40.0,)).invalid is None
    assert row_of(slow, beats=(60.0,)).invalid is not None


def test_wrong_counts_name_themselves():
    wrong = [request(number, output_tokens=3) for number in range(4)]
    summary = summarise(wrong, SPAN, LEVEL, health(4))
    assert "4 with wrong token counts" in summary.row.invalid
    assert summary.facts["errors"] == ["asked for 5 output tokens, got 3"]
    assert summary.row.metrics == {}


def test_an_early_end_is_allowed_when_asked_for():
    early = [request(number, output_tokens=3, times=(2.1, 2.2, 2.3)) for number in range(4)]
    assert row_of(early, Rules(exact_output=False)).invalid is None


def test_a_single_token_has_no_tpot():
    row = row_of([request(1, tokens=1)])
    assert "tpot_ms.p50" not in row.metrics
    assert "tokens_per_s_per_user" not in row.metrics
    assert row.metrics["ttft_ms.p50"] == pytest.approx(50)


def test_percentiles_are_over_pooled_gaps():
    requests = [request(1, itl=0.01, tokens=11), request(2, itl=0.1, tokens=3)]
    gaps = [10.0] * 10 + [100.0] * 2
    assert row_of(requests).metrics["itl_ms.p90"] == pytest.approx(np.percentile(gaps, 90))


def verdict(requests, level=LEVEL):
    found = summarise(requests, SPAN, level, health(len(requests)))
    assert found.facts["steady"] is (found.row.unsteady is None)
    return found.row.unsteady


def test_a_closed_loop_whose_halves_differ_is_unsteady_and_still_valid():
    steady = [request(number, due=1.0 + number * 0.1, tokens=2) for number in range(39)]
    assert verdict(steady) is None
    falling = steady[:20] + steady[20::3]
    assert "first half" in verdict(falling)
    assert row_of(falling).invalid is None


def test_chance_alone_rarely_makes_poisson_arrivals_unsteady():
    found = 0
    for seed in range(500):
        draw = random.Random(seed)
        dues = [draw.uniform(0, 6) for _ in range(60)]
        found += (
            verdict([request(n, due, tokens=draw.randint(2, 8)) for n, due in enumerate(dues)], {"request_rate": 10}) is not None
        )
    assert found < 5


def test_an_open_loop_that_slows_down_is_unsteady():
    requests = [request(n, 1.0 + n * 0.01, tokens=5) for n in range(200)] + [
        request(n, 3.0 + n * 0.001, tokens=5) for n in range(200, 260)
    ]
    assert "first half" in verdict(requests, {"request_rate": 100})


def test_a_load_above_what_the_engine_sustains_piles_up_and_says_so():
    """100 requests/s arrive, 60 are served: the output rate is flat, and the latencies grow for as long as it is measured."""
    over = [request(n, due=n * 0.01, ttft=0.05 + n * 0.01 * (100 / 60 - 1), tokens=2) for n in range(600)]
    assert "piled up" in verdict(over, {"request_rate": 100})
    under = [request(n, due=n * 0.01, ttft=0.4, tokens=2) for n in range(600)]
    assert verdict(under, {"request_rate": 100}) is None


def test_log_round_trip(tmp_path):
    records = [
        {"number": 1, "turn": 0, "status": "finished", "due": 0.5, "sent": 0.5, "times": [0.6], "prompt_tokens": 8,
         "output_tokens": 1, "asked_prompt_tokens": 8, "asked_output_tokens": 1, "error": ""}
    ]  # fmt: skip
    write_log(tmp_path / "deep" / "log.jsonl", records)
    (read,) = read_log(tmp_path / "deep" / "log.jsonl")
    assert read.ttft_ms == pytest.approx(100)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["log.jsonl"]


WHY = "It broke ttft_ms.p99 <= 200 for sure."


def test_a_level_that_was_left_has_no_numbers_and_no_share_of_what_was_cut_with_it():
    asked = [request(0), *(request(number, due=2.5, status="cut", times=()) for number in range(1, 9))]
    found = left(asked, SPAN, LEVEL, health(9), WHY, 200.0)
    assert found.row.metrics == {} and found.row.invalid == WHY
    assert found.facts["requests_in_window"] == 9
    assert not {"finished_share", "steady", "half_rates"} & found.facts.keys()


def test_what_a_left_level_waited_longer_than_says_how_late_its_client_may_be():
    """Its median is unknown, for only the fast ones had answered: a client 8 ms late hid nothing of 200."""
    asked = [request(number, status="cut", times=(), sent=2.008) for number in range(9)]
    assert left(asked, SPAN, LEVEL, health(9), WHY, 200.0).row.invalid == WHY
    late = left(asked, SPAN, LEVEL, health(9), WHY, 100.0).row
    assert late.invalid == "The client was the bottleneck: it was 8.0 ms late (99th percentile; 5.0 ms is allowed)."
    assert late.metrics == {}
