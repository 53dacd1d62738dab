"""One load level from the driver's side, against a crew that answers by rote."""

from __future__ import annotations

from time import perf_counter, sleep
from types import SimpleNamespace

import pytest

from autotune.trial import FailureKind, Phase, TrialFailed
from autotune.workloads._load.conduct import Conductor
from autotune.workloads._load.options import Window

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
        return [(0, {"at": perf_counter(), "open": 0, "finished": 1, "failed": 0, "ttft": []})]


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
