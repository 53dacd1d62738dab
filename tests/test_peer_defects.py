"""Defects seen in other tuners, each as a test that ours does not have it. The name says whose defect it mirrors."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autotune import process
from autotune.engines.base import Context
from autotune.evaluate import evaluate
from autotune.executors.base import Site
from autotune.ledger import Ledger
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Phase, Row, TrialJob, TrialRecord

sys.path.insert(0, str(Path(__file__).parent / "fakes"))
fake = importlib.import_module("autotune_fakes.engine")
count = importlib.import_module("autotune_fakes.workload")


@pytest.fixture
def engine():
    return fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=10, stop_timeout_s=1))


@pytest.fixture
def workload():
    return count.CountWorkload(count.CountOptions(kind="count", deadline_s=3))


@pytest.fixture
def trial(tmp_path, engine, workload):
    numbers = iter(range(100))

    def trial(progress=lambda label, share: None, **values):
        job = TrialJob(number=next(numbers), configuration=Configuration(engine="fake", values=values))
        folder = tmp_path / str(job.number)
        tag = process.make_tag(tmp_path, "s", job.number)
        context = Context(study="s", trial=job.number, tag=tag, folder=folder, scratch=folder / "scratch", cache=tmp_path)
        return evaluate(job, engine, workload, context, progress)

    return trial


def test_auto_tuning_vllm_start_up_death_is_classified_from_the_engines_log_not_its_exit_code(trial):
    memory, refused = trial(mode="oom-start").outcome, trial(mode="refuse").outcome
    assert (memory.kind, refused.kind) == (FailureKind.OUT_OF_MEMORY, FailureKind.INVALID_CONFIG)
    assert "Tried to allocate" in memory.evidence[0]


def test_auto_tuning_vllm_output_that_nobody_reads_does_not_block_the_process(tmp_path):
    code = "import sys\nfor _ in range(100): print('x' * 100_000)\nprint('end', file=sys.stderr)"
    tag = process.make_tag(tmp_path, "s", 0)
    with process.start([sys.executable, "-c", code], env={}, cwd=tmp_path, log=tmp_path / "log", tag=tag) as one:
        assert one.popen.wait(30) == 0
    assert process.tail(tmp_path / "log", 1) == ["end"]


def test_auto_tuning_vllm_trials_of_two_studies_share_no_folder(tmp_path, engine, workload):
    job = TrialJob(number=1, configuration=Configuration(engine="fake"))
    sites = [Site(engines={"fake": engine}, workload=workload, store=tmp_path, study=name) for name in ("one", "two")]
    first, second = (site.context(job) for site in sites)
    again = sites[0].context(job.model_copy(update={"attempt": 2}))
    for name in ("folder", "scratch", "tag"):
        assert len({getattr(context, name) for context in (first, second, again)}) == 3
    assert str(tmp_path) in str(first.folder)


def test_auto_tuning_vllm_one_finished_request_is_no_result(trial, workload, monkeypatch):
    monkeypatch.setattr(workload, "options", workload.options.model_copy(update={"requests": 100}))
    record = trial(mode="drop")
    assert record.outcome.kind is FailureKind.INCOMPLETE and record.measurement is None


def test_autotuner_resume_keeps_each_scores_own_parameters(tmp_path):
    jobs = [
        TrialJob(number=n, configuration=Configuration(engine="fake", values={"x": 681 - n}), point={"x": 0.1 * n})
        for n in range(5)
    ]
    with Ledger(tmp_path, "name: s\n", "d") as ledger:
        for job in jobs:
            ledger.begin(job)
            ledger.record(record_of(job, value=681.0 - job.number))
    with Ledger(tmp_path, "name: s\n", "d") as ledger:
        for job in jobs:
            record = ledger.records[job.number]
            assert (record.configuration, record.point) == (job.configuration, job.point)
            assert record.measurement.rows[0].metrics["m"] == record.configuration.values["x"]


def test_autotuner_what_a_killed_tuner_left_is_found_again(tmp_path):
    code = (
        "import sys,time\nfrom pathlib import Path\nfrom autotune import process\nstore=Path(sys.argv[1])\n"
        "argv=[sys.executable,'-c','import time;time.sleep(60)']\n"
        "one=process.start(argv,env={},cwd=store,log=store/'log',tag=process.make_tag(store,'s',1))\nprint(one.pid,flush=True)\ntime.sleep(60)"
    )
    tuner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    left = int(tuner.stdout.readline())
    tuner.kill()
    tuner.wait()
    tuner.stdout.close()
    os.kill(left, 0)
    assert [reaped.pids for reaped in process.reap(tmp_path)] == [(left,)]


def test_vllm_tuner_a_failed_trial_has_no_number_that_could_win(trial):
    record = trial(mode="oom-start")
    assert record.measurement is None
    kept = json.loads(record.model_dump_json())["outcome"]
    assert "measurement" not in kept and not any(isinstance(value, int | float) for value in kept.values())


def test_flagscale_a_failed_trial_does_not_inherit_the_previous_result(trial):
    assert isinstance(trial(speed=500).outcome, Measured)
    failed = trial(speed=500, mode="die-start")
    assert isinstance(failed.outcome, Failed) and failed.measurement is None and failed.outcome.partial is None
    assert not failed.effective


def bystander(port=0, name="vllm"):
    """A process that looks like an engine and is not ours."""
    code = (
        "import socket,sys,time\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
        "print(s.getsockname()[1],flush=True)\ntime.sleep(60)"
    )
    one = subprocess.Popen([sys.executable, "-c", code, str(port), name, "serve", "ray::"], stdout=subprocess.PIPE, text=True)
    return one, int(one.stdout.readline())


def test_auto_tune_sh_nothing_is_ended_by_name(trial, tmp_path):
    stranger, _ = bystander()
    try:
        trial(mode="stubborn")
        process.reap(tmp_path)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        stranger.stdout.close()


def test_sglang_auto_benchmark_whoever_owns_the_port_is_not_ended_and_not_measured(trial, engine):
    stranger, port = bystander()
    engine.options = engine.options.model_copy(update={"port": port, "start_timeout_s": 1.0})
    try:
        record = trial()
        assert isinstance(record.outcome, Failed)
        assert stranger.poll() is None
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass
    finally:
        stranger.kill()
        stranger.wait()
        stranger.stdout.close()


def test_bench_sweep_a_failed_boot_keeps_its_log_and_the_end_is_awaited(trial):
    record = trial(mode="refuse")
    assert "cannot be combined" in (Path(record.folder) / "engine.log").read_text()
    record = trial(speed=10)
    port = int(record.command[record.command.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_vllm_55510_an_engine_core_that_outlives_its_server_is_ended(trial, tmp_path):
    seen = []

    def kill_the_server(label, share):
        if label == "start":
            return
        os.kill(min(process.tagged(tag_in(tmp_path))), signal.SIGKILL)
        time.sleep(0.2)
        seen.extend(process.tagged(tag_in(tmp_path)))

    trial(progress=kill_the_server, mode="stubborn")
    assert seen, "the core outlived its server"
    assert process.tagged(tag_in(tmp_path)) == []


def tag_in(folder):
    launch = next(folder.glob("*/launch.json"))
    return json.loads(launch.read_text())["context"]["tag"]


def test_novitalabs_a_timeout_leaves_nothing_running(trial, workload, monkeypatch):
    monkeypatch.setattr(workload, "options", workload.options.model_copy(update={"deadline_s": 0.5}))
    before = threading.active_count()
    record = trial(mode="hang-load")
    assert record.outcome.kind is FailureKind.UNHEALTHY and record.outcome.phase is Phase.MEASURE
    assert threading.active_count() == before


def record_of(job, value):
    outcome = Measured(measurement=Measurement(rows=(Row(level={"concurrency": 1}, metrics={"m": value}),)))
    return TrialRecord(number=job.number, configuration=job.configuration, origin=job.origin, point=job.point, outcome=outcome)
