"""When a load level has surely broken its SLO."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.workloads._load.arrivals import arrivals
from autotune.workloads._load.breach import Breach, Lateness, arriving
from autotune.workloads._load.climb import parse_bound

P99 = Breach.of([parse_bound("tpot_ms.p95 <= 25"), parse_bound("ttft_ms.p99 <= 200")])
COUNTS = st.integers(1, 400).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count)))


def test_only_a_percentile_of_the_first_token_tells_while_requests_still_come():
    assert P99.bound.metric == "ttft_ms.p99" and P99.limit_s == 0.2
    assert Breach.of([parse_bound("ttft_ms.mean <= 200"), parse_bound("tpot_ms.p99 <= 20")]) is None


@given(COUNTS, st.sampled_from([50.0, 90.0, 95.0, 99.0]), st.floats(0.001, 1000.0))
def test_what_leaves_no_room_is_broken_and_what_leaves_room_may_still_keep_it(counts, percentile, excess):
    requests, late = counts
    breach = Breach(P99.bound, percentile)
    best = np.percentile([0.0] * (requests - late) + [200.0 + excess] * late, percentile)
    if late > breach.room(requests):
        assert best > 200.0
    else:
        # What is late by next to nothing, beside answers at once.
        assert np.percentile([0.0] * (requests - late) + [200.0 + 1e-9] * late, percentile) <= 200.0


@given(st.integers(1, 400), st.sampled_from([50.0, 90.0, 95.0, 99.0]), st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_late_requests_that_never_finish_may_leave_the_percentile_as_it_was(requests, percentile, share):
    """What fails or is cut has no latency: a level that may lose some of its requests may lose those that were late."""
    breach = Breach(P99.bound, percentile, share)
    lost = max(lost for lost in range(requests) if requests - lost >= share * requests)

    def best(late):
        kept = [0.0] * (requests - late) + [200.0 + 1e-9] * max(0, late - lost)
        return np.percentile(kept, percentile) if kept else 0.0

    assert best(breach.room(requests)) <= 200.0
    assert breach.room(requests) == requests or best(breach.room(requests) + 1) > 200.0


@given(st.floats(0.5, 200.0), st.integers(0, 2**32), st.floats(0.0, 5.0), st.floats(0.1, 5.0))
def test_the_requests_of_a_window_are_known_ahead(rate, seed, low, seconds):
    plan = {"request_rate": rate, "burstiness": 1.0, "seed": seed}
    due, one = [], arrivals(rate, 1.0, seed)
    while not due or due[-1] < low + seconds:
        due.append(next(one))
    assert arriving(plan, low, low + seconds) == sum(low <= at < low + seconds for at in due)


def test_the_lateness_of_all_clients_counts():
    lateness = Lateness(P99, 432)
    lateness.late[0] = 5
    assert not lateness.fatal
    lateness.late[1] = 1
    assert lateness.fatal
    assert lateness.says(1.25) == (
        "It broke ttft_ms.p99 <= 200 for sure 1.2 s after its window began: "
        "6 of the window's 432 requests had waited longer, and 5 may."
    )


@pytest.mark.parametrize("late", [0, 3])
def test_a_window_without_requests_breaks_nothing(late):
    assert not Lateness(P99, 0, {0: late}).fatal
