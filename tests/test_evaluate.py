"""Each failure kind from a real cause: a real server process that misbehaves, driven through the real serving session."""

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from autotune import proc, process
from autotune.advice import advice
from autotune.engines.base import Context, Diagnosis, Launch
from autotune.evaluate import evaluate
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Phase, Row, TrialFailed, TrialJob

sys.path.insert(0, str(Path(__file__).parent / "fakes"))
fake = importlib.import_module("autotune_fakes.engine")
evaluation = importlib.import_module("autotune.evaluate")
count = importlib.import_module("autotune_fakes.workload")


@pytest.fixture
def context(tmp_path):
    return Context(
        study="s",
        trial=1,
        tag=process.make_tag(tmp_path, "s", 1),
        folder=tmp_path / "trial",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
    )


@pytest.fixture
def run(context):
    """Evaluates a configuration of the fake server and checks that nothing of it is left."""

    def run(values, *, attempt=1, engine=None, workload=None, progress=lambda label, share: None, **options):
        engine = engine or fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=3.0, stop_timeout_s=1.0, **options))
        workload = workload or count.CountWorkload(count.CountOptions(kind="count", deadline_s=2.0))
        job = TrialJob(number=1, configuration=Configuration(engine="fake", values=values), attempt=attempt)
        record = evaluate(job, engine, workload, context, progress)
        assert process.tagged(context.tag) == []
        assert not context.scratch.exists()
        return record

    return run


def failed(record, kind, phase):
    assert isinstance(record.outcome, Failed), record.outcome
    assert (record.outcome.kind, record.outcome.phase) == (kind, phase), record.outcome
    assert record.measurement is None
    assert record.outcome.advice
    return "\n".join(record.outcome.evidence)


def test_a_good_trial_is_measured_with_everything_known_about_it(run, context):
    record = run({"speed": 50})
    assert isinstance(record.outcome, Measured)
    totals = record.measurement.totals
    assert totals["kv_cache_tokens"] == 1000 and 0 < totals["start_s"] < 3 and 0.001 < totals["peak_memory_gib"] < 1
    assert record.effective == {"speed": 50} and record.command[-2:] == ("--speed", "50")
    assert {"start", "measure", "stop", "start.core"} <= set(record.seconds)
    assert json.loads((context.folder / "launch.json").read_text())["argv"] == list(record.command)
    port = int(record.command[record.command.index("--port") + 1])
    assert process.port_listener(port) is None


@pytest.mark.parametrize(
    ("values", "kind", "phase", "words"),
    [
        ({"mode": "refuse"}, FailureKind.INVALID_CONFIG, Phase.START, "cannot be combined"),
        ({"nonsense": 1}, FailureKind.INVALID_CONFIG, Phase.START, "unrecognized arguments: --nonsense"),
        ({"mode": "oom-start"}, FailureKind.OUT_OF_MEMORY, Phase.START, "Tried to allocate 20.00 GiB"),
        ({"mode": "oom-load"}, FailureKind.OUT_OF_MEMORY, Phase.MEASURE, "Tried to allocate 2.00 GiB"),
        ({"mode": "slow-start"}, FailureKind.START_TIMEOUT, Phase.START, "did not serve within 3 s"),
        ({"mode": "die-start"}, FailureKind.MACHINE_FAULT, Phase.START, "killed from outside"),
        ({"mode": "die-load"}, FailureKind.MACHINE_FAULT, Phase.MEASURE, "killed from outside"),
        ({"mode": "child-dies-load"}, FailureKind.CRASHED, Phase.MEASURE, "EngineCore died"),
        ({"mode": "exit-clean"}, FailureKind.CRASHED, Phase.MEASURE, "ended with status 0"),
        ({"mode": "hang-load"}, FailureKind.UNHEALTHY, Phase.MEASURE, "did not end in time"),
        ({"mode": "wrong-tokens"}, FailureKind.INCOMPLETE, Phase.MEASURE, "other tokens"),
        ({"mode": "drop"}, FailureKind.INCOMPLETE, Phase.MEASURE, "3 of 8 requests"),
    ],
)
def test_each_cause_gives_its_kind_with_evidence_and_advice(run, values, kind, phase, words):
    assert words in failed(run(values), kind, phase)


@pytest.mark.parametrize(("mode", "phase"), [("die-start", Phase.START), ("die-load", Phase.MEASURE)])
def test_a_kill_without_a_reason_is_the_machines_once_and_the_configurations_twice(run, mode, phase):
    assert "ended with status -9" in failed(run({"mode": mode}, attempt=2), FailureKind.CRASHED, phase)


@pytest.mark.parametrize(
    ("mode", "kind", "status"),
    [
        ("drop", FailureKind.INCOMPLETE, None),
        ("hang-load", FailureKind.UNHEALTHY, None),
        ("die-load", FailureKind.MACHINE_FAULT, -9),
    ],
)
def test_a_status_that_is_our_own_doing_explains_no_failure(run, mode, kind, status):
    """Of an engine that is killed at its end as a matter of course, every failure would read as a kill from outside."""
    told = []

    class Asked(fake.FakeEngine):
        def diagnose(self, log, returncode):
            told.append(returncode)

    failed(run({"mode": mode}, engine=Asked(fake.FakeOptions(kind="fake", stop_timeout_s=0.01))), kind, Phase.MEASURE)
    assert told[-1] == status


def test_what_was_ready_has_refused_no_flags(run):
    """A training's log names the same exception for a refused argument and for a reward function that fails at a later step."""

    class Refusing(fake.FakeEngine):
        def diagnose(self, log, returncode):
            return Diagnosis(kind=FailureKind.INVALID_CONFIG, evidence=("ValueError: late",), advice="Forbid it.")

    engine = Refusing(fake.FakeOptions(kind="fake", start_timeout_s=3.0, stop_timeout_s=1.0))
    record = run({"mode": "child-dies-load"}, engine=engine)
    assert "ValueError: late" in failed(record, FailureKind.CRASHED, Phase.MEASURE) and record.outcome.advice != "Forbid it."
    failed(run({"mode": "refuse"}, engine=engine), FailureKind.INVALID_CONFIG, Phase.START)


def test_a_port_answered_by_a_stranger_is_not_measured(run):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stop = threading.Event()
        body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"

        def serve():
            stranger.settimeout(0.1)
            while not stop.is_set():
                try:
                    client, _ = stranger.accept()
                except TimeoutError:
                    continue
                with client:
                    client.recv(4096)
                    client.sendall(body)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            record = run({"start_s": 1.0}, port=stranger.getsockname()[1])
        finally:
            stop.set()
            thread.join()
    assert "not of this trial" in failed(record, FailureKind.MACHINE_FAULT, Phase.START)


def test_a_child_that_ignores_term_is_killed_and_the_result_stands(run):
    record = run({"speed": 10, "mode": "stubborn"}, workload=Instant(count.CountOptions(kind="count")))
    assert isinstance(record.outcome, Measured)
    assert record.measurement.facts["stop"]["killed"] == 1


class Instant(count.CountWorkload):
    def run(self, session, context, progress):
        return self._table(session, [{"tokens": 4}] * self.options.requests)


class Raises(Instant):
    error: BaseException = ZeroDivisionError("https://me:secret@host/")

    def run(self, session, context, progress):
        raise self.error


def test_a_defect_is_a_machine_fault_with_its_traceback_and_no_secrets(run, context):
    record = run({}, workload=Raises(count.CountOptions(kind="count")))
    said = failed(record, FailureKind.MACHINE_FAULT, Phase.MEASURE)
    assert "ZeroDivisionError: https://***@host/" in said and "secret" not in said
    kept = (context.folder / "traceback.txt").read_text()
    assert "in run" in kept and "secret" not in kept


def test_start_up_is_the_engines_own_and_not_what_was_prepared_for_it(run):
    class Prepared(fake.FakeEngine):
        def open(self, launch, context):
            time.sleep(1.5)
            return super().open(launch, context)

    record = run({}, engine=Prepared(fake.FakeOptions(kind="fake", start_timeout_s=10.0, stop_timeout_s=1.0)))
    spent, start_s = record.seconds["start"], record.measurement.totals["start_s"]
    assert spent - start_s >= 1.5, "the study pays for it, the configuration does not"


def test_a_metric_of_windows_is_not_replaced_by_the_whole_lifes(context):
    life = evaluation._Life(None, None, None, context, lambda label, share: None, oom_kills=0)
    life.resources = {"gpu_utilization": 0.4, "energy_joule": 900.0}
    rows = (Row(level={"concurrency": 8}, metrics={"gpu_utilization": 0.95}),)
    early = Measurement(rows=rows, totals={"energy_joule": 850.0})
    assert evaluation._merged(early, life, 3.0).totals == {"start_s": 3.0, "energy_joule": 900.0}
    trained = Measurement(rows=(), totals={"gpu_utilization": 0.9})
    assert evaluation._merged(trained, life, 3.0).totals["gpu_utilization"] == 0.9


def test_a_stop_request_is_an_interruption(run):
    workload = Raises(count.CountOptions(kind="count"))
    workload.error = KeyboardInterrupt()
    failed(run({}, workload=workload), FailureKind.INTERRUPTED, Phase.MEASURE)


def test_no_rows_and_only_invalid_rows_are_no_measurement(run):
    class Empty(Instant):
        def run(self, session, context, progress):
            return Measurement(rows=())

    assert "no rows" in failed(run({}, workload=Empty(count.CountOptions(kind="count"))), FailureKind.INCOMPLETE, Phase.MEASURE)
    record = run({"mode": "wrong-tokens"})
    assert record.outcome.partial.rows[0].invalid


def test_what_was_measured_before_a_death_is_evidence_only(run):
    partial = Measurement(rows=())
    workload = Raises(count.CountOptions(kind="count"))
    workload.error = TrialFailed(FailureKind.CRASHED, Phase.MEASURE, "gone", partial=partial)
    record = run({}, workload=workload)
    assert record.outcome.partial == partial and record.measurement is None


def test_a_stop_that_fails_neither_undoes_the_result_nor_leaves_processes(run, monkeypatch):
    session = importlib.import_module("autotune.engines._server").ServingSession
    monkeypatch.setattr(session, "stop", lambda self: 1 / 0)
    record = run({"speed": 50})
    assert isinstance(record.outcome, Measured)
    assert "ZeroDivisionError" in record.measurement.facts["stop"]["error"]


def test_a_launch_that_cannot_be_made_is_a_failed_trial(run, monkeypatch):
    class Missing(fake.FakeEngine):
        def launch(self, configuration, context):
            return Launch(argv=("no-such-engine",), endpoint="http://127.0.0.1:1")

    engine = Missing(fake.FakeOptions(kind="fake"))
    assert "no-such-engine" in failed(run({}, engine=engine), FailureKind.MACHINE_FAULT, Phase.START)


def test_a_stopped_engine_is_noticed_and_ended(run, context):
    def stop_it(label, share):
        if label.startswith("concurrency"):
            for pid in process.tagged(context.tag):
                os.kill(pid, signal.SIGSTOP)

    failed(run({}, progress=stop_it), FailureKind.UNHEALTHY, Phase.MEASURE)


def test_credentials_in_flags_and_variables_are_not_kept(run, context):
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake", env={"MY_TOKEN": "s3cret", "URL": "http://me:s3cret@x/"}))
    engine.options = engine.options.model_copy(update={"fixed": {"api_key": "s3cret", "nonsense": "http://me:s3cret@x/"}})
    record = run({}, engine=engine)
    kept = record.model_dump_json() + (context.folder / "launch.json").read_text()
    assert "s3cret" not in kept and "***" in kept


def test_every_kind_has_advice():
    for kind in FailureKind:
        for phase in Phase:
            for training in (False, True):
                text = advice(kind, phase, training=training)
                assert text.endswith(".") and text[0].isupper()
    order = [
        advice(FailureKind.OUT_OF_MEMORY, Phase.MEASURE).index(word)
        for word in ("gpu_memory_utilization", "max_model_len", "max_num_seqs")
    ]
    assert order == sorted(order)


def test_the_port_and_the_tree_are_gone_when_evaluate_returns_after_a_kill(run, context):
    def kill_parent(label, share):
        if label.startswith("concurrency"):
            leader = min(process.tagged(context.tag))
            os.kill(leader, signal.SIGKILL)
            time.sleep(0.1)
            assert proc.members(context.tag), "the engine's child outlives its parent until it is ended"

    failed(run({"mode": "stubborn"}, progress=kill_parent), FailureKind.MACHINE_FAULT, Phase.MEASURE)


def test_a_launch_within_its_context_has_its_files_and_sees_its_gpus_and_scratch_only(tmp_path):
    folders = {"folder": tmp_path / "a" / "trial", "scratch": tmp_path / "b" / "scratch", "cache": tmp_path}
    context = Context(study="s", trial=0, tag="t", gpus=(2, 3), **folders)
    launch = Launch(argv=("x",), env={"A": "1", "CUDA_DEVICE_ORDER": "own"}, files={"deep/a.yaml": "a: ä\n"}).within(context)
    assert launch.env == {
        "TMPDIR": str(context.scratch),
        "CUDA_VISIBLE_DEVICES": "2,3",
        "CUDA_DEVICE_ORDER": "own",
        "A": "1",
    }
    assert (context.folder / "deep" / "a.yaml").read_text(encoding="utf-8") == "a: ä\n" and context.scratch.is_dir()
    assert "CUDA_VISIBLE_DEVICES" not in context.model_copy(update={"gpus": ()}).env
