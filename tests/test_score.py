"""From measurements to values: absent and invalid numbers never become a score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.score import Constraint, Objective, Selector, level_name, score, unsteady, value_of
from autotune.trial import FailureKind, Measurement, Row, TrialFailed


def measurement(**changes):
    rows = (
        Row(level={"request_rate": 10}, metrics={"output_tokens_per_s": 100.0, "ttft_ms.p99": 50.0, "goodput_per_s": 5.0}),
        Row(level={"request_rate": 40}, metrics={"output_tokens_per_s": 300.0, "ttft_ms.p99": 400.0, "goodput_per_s": 9.0}),
    )
    return Measurement(**{"rows": rows, "totals": {"peak_gpu_memory_gib": 30.0}, **changes})


def maximize(text):
    return Objective(selector=Selector.parse(text), direction="maximize")


def minimize(text):
    return Objective(selector=Selector.parse(text), direction="minimize")


def test_without_a_level_the_best_row_counts_for_throughput_and_the_worst_for_latency():
    result = score(measurement(), [maximize("output_tokens_per_s"), minimize("ttft_ms.p99"), minimize("peak_gpu_memory_gib")])
    assert result.values == (300.0, 400.0, 30.0)


def test_a_level_is_chosen_by_name():
    assert score(measurement(), [minimize("ttft_ms.p99 @ request_rate=10")]).values == (50.0,)


def test_constraints_are_relative_and_take_the_worst_row():
    bounds = [
        Constraint.parse("ttft_ms.p99 <= 200"),
        Constraint.parse("ttft_ms.p99 <= 100 @ request_rate=10"),
        Constraint.parse("goodput_per_s >= 10"),
    ]
    result = score(measurement(), [maximize("output_tokens_per_s")], bounds)
    assert result.violations == pytest.approx((1.0, -0.5, 0.5))
    assert not result.feasible


@pytest.mark.parametrize("text", ["kl <= -0.5", "reward <= -1", "loss <= -2", "reward_slope >= 5", "ttft_ms.p99 >= -1"])
def test_a_bound_that_some_measurement_can_keep_is_one(text):
    assert Constraint.parse(text).name == text


def test_a_lower_bound_takes_the_lowest_row_of_a_metric_that_is_better_low():
    result = score(measurement(), [maximize("output_tokens_per_s")], [Constraint.parse("ttft_ms.p99 >= 100")])
    assert not result.feasible


def test_a_metric_of_no_direction_is_minimised_at_its_worst_row():
    rows = tuple(Row(level={"request_rate": rate}, metrics={"kv_cache_usage": rate / 100}) for rate in (10, 40))
    assert score(measurement(rows=rows), [minimize("kv_cache_usage")]).values == (0.4,)


def test_an_unsteady_row_is_told_where_its_number_was_taken():
    low, high = measurement().rows
    drifting = high.model_copy(update={"unsteady": "The output rate fell."})
    shaky = measurement(rows=(low, drifting))
    assert score(shaky, [maximize("output_tokens_per_s")]).values == (300.0,)
    assert unsteady(shaky, [maximize("output_tokens_per_s")]) == ("request_rate=40: The output rate fell.",)
    assert unsteady(shaky, [maximize("output_tokens_per_s @ request_rate=10"), minimize("peak_gpu_memory_gib")]) == ()


@pytest.mark.parametrize(
    ("changed", "selector"),
    [
        (measurement(rows=()), "output_tokens_per_s"),
        (measurement(totals={}), "peak_gpu_memory_gib"),
        (measurement(), "ttft_ms.p50"),
        (measurement(), "ttft_ms.p99 @ request_rate=20"),
        (measurement(), "ttft_ms.p99 @ concurrency=10"),
    ],
)
def test_what_was_not_measured_is_no_score(changed, selector):
    with pytest.raises(TrialFailed) as caught:
        score(changed, [maximize(selector)])
    assert caught.value.failed.kind is FailureKind.INCOMPLETE


def test_an_invalid_row_is_no_score():
    rows = (
        *measurement().rows,
        Row(level={"request_rate": 80}, metrics={"output_tokens_per_s": 900.0}, invalid="the client was the bottleneck"),
    )
    with pytest.raises(TrialFailed, match="the client was the bottleneck"):
        score(measurement(rows=rows), [maximize("output_tokens_per_s")])
    assert score(measurement(rows=rows), [maximize("output_tokens_per_s @ request_rate=40")]).values == (300.0,)


def test_a_metric_missing_in_one_row_is_no_score():
    rows = (*measurement().rows, Row(level={"request_rate": 80}, metrics={"goodput_per_s": 1.0}))
    with pytest.raises(TrialFailed, match="2 of 3"):
        score(measurement(rows=rows), [maximize("output_tokens_per_s")])


@pytest.mark.parametrize(
    "text", ["ttft_ms < 5", "ttft_ms.p99", "ttft_ms.p99 <= x", "nope <= 4", "ttft_ms.p99 <= 0", "ttft_ms.p99 <= 5 @ x"]
)
def test_broken_constraints(text):
    with pytest.raises(ValueError, match=r"\w"):
        Constraint.parse(text)


def test_the_nearest_metric_is_named():
    with pytest.raises(ValueError, match=r"output_tokens_per_s"):
        Selector.parse("ouput_tokens_per_s")


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_violation_sign(value, limit):
    upper = Constraint.parse(f"ttft_ms.p99 <= {limit!r}")
    lower = Constraint.parse(f"ttft_ms.p99 >= {limit!r}")
    assert (upper.violation(value) <= 0) == (value <= limit)
    assert (lower.violation(value) <= 0) == (value >= limit)


@given(st.text(max_size=40))
def test_any_text_is_a_selector_or_a_value_error(text):
    for parse in (Selector.parse, Constraint.parse):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


def test_a_number_that_a_workload_could_not_find_says_why():
    """An SLO that no rate keeps leaves rows with every other number, which say nothing of it."""
    rows = (Row(level={"request_rate": 1.0}, metrics={"ttft_ms.p99": 900.0}),)
    measurement = Measurement(rows=rows, facts={"missing": {"slo_request_rate": "no rate kept it"}})
    with pytest.raises(TrialFailed, match="slo_request_rate has no value: no rate kept it"):
        value_of(measurement, Selector.parse("slo_request_rate"))


def test_a_level_is_named_for_people():
    """A climb's rates are square roots; steps and users are whole numbers, a word is what it says."""
    names = [
        level_name(Row(level=level, metrics={})) for level in ({"request_rate": 17.242979730910665}, {"step": 12345}, {"a": "b"})
    ]
    assert names == ["request_rate=17.24", "step=12345", "a=b"]
    assert level_name(Row(level={"request_rate": 4.0}, metrics={})) == "request_rate=4"
