"""The whole workload against a real server process whose truth is known, and every way in which a server can fail it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autotune.bar import Bar, Spread
from autotune.score import Objective, Selector, unsteady
from autotune.trial import FailureKind, TrialFailed
from autotune.workloads._load import crew as crew_module
from autotune.workloads._load import summary
from autotune.workloads._load.crew import Crew
from autotune.workloads._load.requests import read_log
from autotune.workloads.http import HttpOptions, HttpWorkload

TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "contracts"):
    sys.path.insert(0, str(folder))

from mock_openai import context, serving  # noqa: E402
from workload import WorkloadContract  # noqa: E402

FAST = ("--ttft-ms", 20, "--itl-ms", 5)
WINDOW = {"warm_up_s": 1.0, "measure_s": 1.0, "deadline_s": 2.0}
TRAFFIC = {"input_tokens": 32, "output_tokens": 8}


def options(**changes):
    return HttpOptions.model_validate({"traffic": TRAFFIC, "load": [{"concurrency": 8}], "window": WINDOW, "clients": 1, **changes})


def run(session, folder, **changes):
    """The measurement, or that of a failure's partial."""
    return HttpWorkload(options(**changes)).run(session, context(folder), lambda label, share: None)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On a machine where the tests' neighbours take every core, a late client is no fault of the code under test."""
    monkeypatch.setattr(summary, "LAG_FLOOR_MS", 500.0)


@pytest.fixture(autouse=True)
def nothing_left():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


class TestContract(WorkloadContract):
    @pytest.fixture
    def workload(self):
        return HttpWorkload(options(load=[{"concurrency": 4}, {"request_rate": 30}], window={**WINDOW, "measure_s": 0.6}))

    @pytest.fixture
    def session(self):
        with serving(*FAST) as session:
            yield session

    @pytest.fixture
    def context(self, tmp_path):
        return context(tmp_path)


def test_it_sees_what_the_server_does(tmp_path):
    told = []
    with serving(*FAST) as session:
        workload = HttpWorkload(
            options(load=[{"concurrency": 8}, {"request_rate": 40, "arrival": "constant"}], goodput={"ttft_ms": 60})
        )
        found = workload.run(session, context(tmp_path), lambda label, share: told.append((label, share)))
    closed, opened = found.rows
    for row in found.rows:
        assert row.metrics["ttft_ms.p50"] == pytest.approx(20, abs=6)
        assert row.metrics["tpot_ms.p50"] == pytest.approx(5, abs=1)
        assert row.metrics["e2e_ms.p50"] == pytest.approx(55, abs=8)
        assert 0 < row.metrics["goodput_per_s"] <= row.metrics["requests_per_s"]
        assert row.metrics["total_tokens_per_s"] == pytest.approx(5 * row.metrics["output_tokens_per_s"], rel=0.15)
        assert row.metrics["preemptions"] == 0
        assert row.metrics["gpu_utilization"] == 0.5
        assert row.metrics["energy_joule_per_token"] == pytest.approx(300 / row.metrics["output_tokens_per_s"], rel=1e-3)
        assert set(row.metrics) <= workload.metrics()
    assert closed.level == {"concurrency": 8}
    assert opened.metrics["requests_per_s"] == pytest.approx(40, abs=3)
    assert session.resets == 2
    assert found.facts["levels"][1]["requests_in_window"] == pytest.approx(40, abs=2)
    counted = found.facts["levels"][1]["generation_tokens"]
    assert counted["client"] == pytest.approx(counted["server"], rel=0.05)
    assert told[0] == ("concurrency 8", 0.0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    log = read_log(tmp_path / "requests-0.jsonl")
    assert all(each.prompt_tokens == 32 and each.output_tokens == 8 for each in log if each.status == "finished" and each.due > 0.5)


def test_two_clients_share_a_level(tmp_path):
    with serving(*FAST) as session:
        found = run(session, tmp_path, load=[{"request_rate": 60}], clients=2)
    numbers = sorted(each.number for each in read_log(tmp_path / "requests-0.jsonl"))
    assert numbers == list(range(len(numbers)))
    assert found.rows[0].metrics["requests_per_s"] == pytest.approx(60, rel=0.4)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_conversations(tmp_path, endpoint):
    with serving(*FAST) as session:
        found = run(session, tmp_path, endpoint=endpoint, traffic={**TRAFFIC, "turns": 3, "shared_prefix": {"tokens": 16}})
    log = [each for each in read_log(tmp_path / "requests-0.jsonl") if each.status == "finished"]
    assert {each.turn for each in log} == {0, 1, 2}
    assert found.rows[0].metrics["requests_per_s"] > 50
    lengths = {turn: max(each.prompt_tokens for each in log if each.turn == turn) for turn in range(3)}
    assert lengths == {0: 48, 1: 88, 2: 128}


def test_a_trace_is_replayed(tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": index * 50, "input_length": 10 + index % 3, "output_length": 4} for index in range(100)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(*FAST) as session:
        found = run(session, tmp_path, traffic={"trace": str(trace)}, load=[{"replay": 2.0}])
    assert found.rows[0].level == {"replay": 2.0}
    assert found.rows[0].metrics["requests_per_s"] == pytest.approx(40, abs=3)


def test_the_climb_finds_the_capacity(tmp_path):
    """Eight slots of 55 ms each serve 145 requests a second; above that, the queue grows."""
    climb = {"constraints": ["ttft_ms.p95 <= 60"], "start": 40, "max_steps": 5, "precision": 0.3}
    with serving(*FAST, "--slots", 8) as session:
        found = run(session, tmp_path, load=[{"slo_climb": climb}], window={"warm_up_s": 0.5, "measure_s": 1.0, "deadline_s": 1.0})
    assert 75 <= found.totals["slo_request_rate"] <= 160
    best = next(row for row in found.rows if row.level["request_rate"] == found.totals["slo_request_rate"])
    assert found.totals["slo_goodput_per_s"] == found.totals["slo_request_rate"] * best.metrics["slo_attainment"]
    assert best.metrics["slo_attainment"] >= 0.95
    assert found.facts["climb_found_limit"]
    assert [row.level["request_rate"] for row in found.rows][:3] == [40, 80, 160]


def test_a_climb_says_that_requests_piled_up_at_its_best_rate(tmp_path):
    """Eight slots of 55 ms each serve 145 requests a second, and an SLO that allows a queue of 10 s is kept at 240."""
    climb = {"constraints": ["ttft_ms.p95 <= 10000"], "start": 120, "max_steps": 2}
    with serving(*FAST, "--slots", 8) as session:
        window = {"warm_up_s": 0.5, "measure_s": 2.0, "deadline_s": 20.0}
        found = run(session, tmp_path, load=[{"slo_climb": climb}], window=window)
    assert found.totals["slo_request_rate"] == 240
    goal = Objective(selector=Selector.parse("slo_request_rate"), direction="maximize")
    (said,) = unsteady(found, [goal])
    assert said.startswith("request_rate=240: ") and "Requests piled up" in said
    assert unsteady(found.model_copy(update={"facts": {}}), [goal]) == ()


def test_a_climb_begins_where_it_is_told(tmp_path):
    climb = {"constraints": ["ttft_ms.p95 <= 60"], "start": 4, "max_steps": 2}
    workload = HttpWorkload(options(load=[{"slo_climb": climb}], window={**WINDOW, "warm_up_s": 0.3, "measure_s": 0.5}))
    with serving(*FAST) as session:
        told = context(tmp_path).model_copy(update={"climb_from": 30.0})
        found = workload.run(session, told, lambda label, share: None)
    assert [row.level["request_rate"] for row in found.rows] == [30, 60]
    assert found.totals["slo_request_rate"] == 60
    assert not found.facts["climb_found_limit"]


def bar(text, best, **changes):
    """A front of one trial in one objective, its noise well known."""
    objective = Objective(selector=Selector.parse(text), direction="maximize")
    return Bar(
        objectives=(objective,),
        constraints=(),
        front=((best,),),
        nadir=(1.0,),
        spreads=(Spread(deviation=0.1, freedom=100),),
        **changes,
    )


def ended(tmp_path, judge, *server, **changes):
    """What a run that had to clear a bar was ended with."""
    workload = HttpWorkload(options(**changes))
    with serving(*server) as session, pytest.raises(TrialFailed) as raised:
        workload.run(session, context(tmp_path, bar=judge), lambda label, share: None)
    assert raised.value.failed.kind is FailureKind.ENDED_EARLY
    assert raised.value.failed.evidence[0].startswith("Ended early: At best")
    return raised.value.failed.partial


def test_a_hopeless_trial_ends_after_the_level_that_shows_it(tmp_path):
    """Two users at 55 ms each finish 36 requests a second."""
    loads = [{"concurrency": 2}, {"request_rate": 4}, {"request_rate": 8}]
    partial = ended(tmp_path, bar("requests_per_s @ concurrency=2", 500.0), *FAST, load=loads)
    assert [row.level for row in partial.rows] == [{"concurrency": 2}]
    assert not (tmp_path / "requests-1.jsonl").exists()


def test_a_trial_that_may_reach_the_front_runs_all_its_levels(tmp_path):
    workload = HttpWorkload(options(load=[{"concurrency": 2}, {"request_rate": 4}]))
    with serving(*FAST) as session:
        judge = bar("requests_per_s @ concurrency=2", 20.0)
        found = workload.run(session, context(tmp_path, bar=judge), lambda label, share: None)
    assert len(found.rows) == 2


def test_a_probe_ends_a_hopeless_trial_before_any_level_runs_in_full(tmp_path):
    judge = bar("requests_per_s @ concurrency=2", 5000.0, probe_s=0.5)
    partial = ended(tmp_path, judge, *FAST, load=[{"concurrency": 2}, {"request_rate": 4}])
    assert partial.facts["probe_s"] == 0.5
    assert len(partial.rows) == 1
    assert not (tmp_path / "requests-0.jsonl").exists()


def test_a_promoted_trial_is_measured_in_full_after_its_probe(tmp_path):
    told = []
    workload = HttpWorkload(options(load=[{"concurrency": 2}, {"concurrency": 4}]))
    with serving(*FAST) as session:
        judge = bar("requests_per_s @ concurrency=2", 20.0, probe_s=0.5)
        found = workload.run(session, context(tmp_path, bar=judge), lambda label, share: told.append(share))
    assert [row.level for row in found.rows] == [{"concurrency": 2}, {"concurrency": 4}]
    assert told == sorted(told)


def test_a_climb_ends_once_the_rate_that_broke_is_too_low(tmp_path):
    """Eight slots of 55 ms each serve 145 requests a second, so that 320 breaks and everything below is out of the race."""
    climb = {"constraints": ["ttft_ms.p95 <= 60"], "start": 320, "max_steps": 6, "precision": 0.05}
    window = {"warm_up_s": 0.5, "measure_s": 1.0, "deadline_s": 1.0}
    partial = ended(tmp_path, bar("slo_request_rate", 5000.0), *FAST, "--slots", 8, load=[{"slo_climb": climb}], window=window)
    assert [row.level for row in partial.rows] == [{"request_rate": 320}]
    assert "slo_request_rate" not in partial.totals


CLIMB = {"constraints": ["ttft_ms.p95 <= 60"], "start": 60, "max_steps": 3, "precision": 0.3}


def climbed(tmp_path, judge):
    """Eight slots of 55 ms each serve 145 requests a second: 60 holds, 240 drowns whatever 120 does."""
    window = {"warm_up_s": 0.5, "measure_s": 2.0, "deadline_s": 3.0}
    workload = HttpWorkload(options(load=[{"slo_climb": CLIMB}], window=window))
    with serving(*FAST, "--slots", 8) as session:
        found = workload.run(session, context(tmp_path, bar=judge), lambda label, share: None)
    return found, {row.level["request_rate"]: row for row in found.rows}


def test_a_rate_that_has_surely_broken_the_slo_is_not_measured_to_its_end(tmp_path):
    found, rows = climbed(tmp_path, bar("slo_request_rate", 1.0))
    assert found.totals["slo_request_rate"] >= 60 and rows[60].metrics["ttft_ms.p95"] <= 60
    cut = {rate: row for rate, row in rows.items() if row.invalid is not None}
    assert cut and min(cut) > found.totals["slo_request_rate"]
    for rate, row in cut.items():
        assert not row.metrics, "what was cut has no numbers"
        said = r"It broke ttft_ms.p95 <= 60 for sure \d\.\d s after its window began: \d+ of the window's \d+ requests had waited"
        assert re.match(said, row.invalid)
        (fact,) = [one for one in found.facts["levels"] if one["level"] == {"request_rate": rate}]
        assert fact["window_s"] <= 2.0


@pytest.mark.parametrize("judge", [None, "requests_per_s"])
def test_a_climb_is_measured_whole_where_its_levels_count_or_nothing_may_be_ended(tmp_path, judge):
    found, rows = climbed(tmp_path, judge and bar(judge, 1.0))
    assert found.totals["slo_request_rate"] >= 60
    assert all("ttft_ms.p95" in row.metrics for row in rows.values())
    assert max(row.metrics["ttft_ms.p95"] for row in rows.values()) > 60


def test_arranged_levels_run_and_are_told_in_the_new_order():
    workload = HttpWorkload(options(load=[{"request_rate": 4}, {"concurrency": 2}]))
    workload.arrange(lambda levels: range(len(levels) - 1, -1, -1))
    assert workload.levels() == ({"concurrency": 2}, {"request_rate": 4})


@pytest.mark.parametrize(
    ("fault", "kind", "evidence"),
    [
        ("hang", FailureKind.UNHEALTHY, r"Not one of the \d+ requests of concurrency 8 finished"),
        ("silent", FailureKind.UNHEALTHY, r"Not one of the \d+ requests of concurrency 8 finished"),
        ("error", FailureKind.UNHEALTHY, "HTTP 500: .*mock failure"),
        ("stream-error", FailureKind.UNHEALTHY, "streamed an error: .*mock failure"),
        ("close", FailureKind.UNHEALTHY, "closed the connection before the answer was complete"),
        ("wrong-count", FailureKind.INCOMPLETE, "asked for 8 output tokens, got 4"),
        ("no-usage", FailureKind.INCOMPLETE, "the server sent no usage"),
        ("die", FailureKind.CRASHED, "The mock server ended"),
    ],
)
def test_a_server_that_fails_is_never_measured(tmp_path, fault, kind, evidence):
    window = {"warm_up_s": 0.5, "measure_s": 0.5, "deadline_s": 0.5}
    began = time.monotonic()
    with serving(*FAST, "--fault", fault) as session, pytest.raises(TrialFailed, match=evidence) as raised:
        run(session, tmp_path, window=window)
    assert raised.value.failed.kind == kind
    assert time.monotonic() - began < 15


def test_what_was_measured_before_a_death_is_kept_as_evidence(tmp_path):
    load = [{"request_rate": 20}, {"request_rate": 21}]
    with serving(*FAST, "--fault", "die", "--fault-after", 70) as session, pytest.raises(TrialFailed) as raised:
        run(session, tmp_path, load=load)
    assert [row.level for row in raised.value.failed.partial.rows] == [{"request_rate": 20.0}]


def test_some_failures_are_counted_and_leave_the_level_invalid(tmp_path):
    """From the 50th request on the server hangs: the window holds both kinds."""
    with serving(*FAST, "--fault", "hang", "--fault-after", 50) as session, pytest.raises(TrialFailed) as raised:
        run(session, tmp_path, load=[{"request_rate": 50}])
    assert raised.value.failed.kind in (FailureKind.INCOMPLETE, FailureKind.UNHEALTHY)


def test_a_server_that_hangs_for_good_is_given_up(tmp_path):
    """Long before the warm-up is over."""
    window = {"warm_up_s": 60, "measure_s": 60, "deadline_s": 0.5}
    with (
        serving(*FAST, "--fault", "hang") as session,
        pytest.raises(TrialFailed, match=r"No request finished within 0\.5 s") as raised,
    ):
        run(session, tmp_path, window=window)
    assert raised.value.failed.kind == FailureKind.UNHEALTHY


def test_a_client_that_dies_is_the_machines_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "ANSWER_S", 5.0)
    with pytest.raises(TrialFailed) as raised, Crew(1, "tag") as crew:
        psutil.Process().children()[-1].kill()
        crew.collect("never")
    assert raised.value.failed.kind == FailureKind.MACHINE_FAULT


def test_clients_carry_the_tag_and_die_with_the_driver(tmp_path):
    with Crew(2, "tag-of-the-trial") as crew:
        workers = psutil.Process().children()
        assert {worker.environ()["AUTOTUNE_TAG"] for worker in workers[-2:]} == {"tag-of-the-trial"}
        crew.close()
    driver = (
        "import os, time; from autotune.workloads._load.crew import Crew; crew = Crew(1, 'tag').__enter__(); "
        "print(crew._workers[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    told = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False).stdout
    until = time.monotonic() + 5
    while psutil.pid_exists(int(told)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(told)) or psutil.Process(int(told)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("load", "traffic"),
    [({"request_rate": 0.3, "arrival": "constant"}, TRAFFIC), ({"concurrency": 1}, {**TRAFFIC, "turns": 5, "think_s": 3.2})],
)
def test_an_engine_that_nobody_asks_is_not_silent(tmp_path, load, traffic):
    """Gaps longer than the deadline, as slow rates, conversations and traces have them, are no hang."""
    with serving(*FAST) as session:
        window = {"warm_up_s": 0, "measure_s": 7.0, "deadline_s": 1.0}
        (row,) = run(session, tmp_path, load=[load], traffic=traffic, window=window).rows
    assert row.invalid is None and row.metrics["requests_per_s"] > 0
