"""One load level from the driver's side, against a crew that answers by rote."""

from __future__ import annotations

from time import perf_counter, sleep
from types import SimpleNamespace

import pytest

from autotune.trial import FailureKind, Phase, TrialFailed
from autotune.workloads._load.breach import Breach
from autotune.workloads._load.climb import parse_bound
from autotune.workloads._load.conduct import Conductor
from autotune.workloads._load.options import Window
from autotune.workloads._load.warm_up import WarmUp

END = {"requests": [], "beats": [], "cpu_s": 0.0, "wall_s": 1.0, "issued": 0}


class Crew:
    """One client that has nothing left to do."""

    clients = 1

    def order(self, orders):
        return

    def collect(self, name):
        return [END]

    def poll(self, seconds):
        sleep(min(seconds, 0.01))
        return [(0, {"at": perf_counter(), "open": 0, "finished": 1, "failed": 0, "ttft": [], "late": 0, "idle": False})]


class Session:
    """An engine that is found dead at the `fatal`-th look; the first is at once, and a second is due after a second."""

    def __init__(self, fatal):
        self.looks, self.fatal = 0, fatal

    def check_alive(self):
        self.looks += 1
        if self.looks == self.fatal:
            raise TrialFailed(FailureKind.CRASHED, Phase.MEASURE, "The engine ended with status 1.")


def run(session):
    watch = SimpleNamespace(take=lambda: None)
    window = Window(warm_up_s=0, measure_s=0.05, deadline_s=1)
    return Conductor(Crew(), session, window, watch, lambda share: None).run([{}], 0)


def test_an_engine_that_died_after_its_last_answer_is_no_measurement():
    assert run(Session(fatal=0)).span.seconds == pytest.approx(0.05)
    with pytest.raises(TrialFailed, match="status 1"):
        run(Session(fatal=2))


def test_an_open_loop_is_warm_only_when_answers_end_as_often_as_they_begin():
    """40 requests/s whose answers take 5 s: the first tokens are flat at once, and 200 are under way only after 5 s."""
    warm = WarmUp(0, start=100.0)
    due = [100.0 + n / 40 for n in range(400)]
    flat_at = None
    for tick in range(1, 100):
        now, before = 100.0 + tick / 5, 100.0 + (tick - 1) / 5
        warm.add([(at + 0.05, 0.05) for at in due if before < at + 5.0 <= now], now)
        flat_at = now if warm.flat and flat_at is None else flat_at
    assert flat_at is not None and 110.0 <= flat_at < 111.0


@pytest.mark.parametrize("open_still", [0, 1])
def test_a_level_is_left_for_what_is_still_to_come_only(open_still):
    """Where the report that shows the limit broken shows all answered too, the whole was measured and has its numbers."""
    breach, plan = Breach.of([parse_bound("ttft_ms.p50 <= 10")]), {"request_rate": 100.0, "burstiness": None, "seed": 0}

    class Late(Crew):
        high = 0.0

        def order(self, orders):
            if isinstance(orders, dict) and orders["do"] == "window":
                self.high = orders["to"]

        def poll(self, seconds):
            ((worker, message),) = super().poll(seconds)
            over = message["at"] >= self.high
            return [(worker, {**message, "late": 20 * over, "open": open_still if over else 9})]

    watch, window = SimpleNamespace(take=lambda: None), Window(warm_up_s=0, measure_s=0.05, deadline_s=1)
    log = Conductor(Late(), Session(fatal=0), window, watch, lambda share: None).run([plan], 0, breach)
    assert (log.broke is not None) is bool(open_still)
    assert log.span.seconds == pytest.approx(0.05)
