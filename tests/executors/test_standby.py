"""Trials whose interpreter has imported while the trial before was measured, and what strikes it."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune import executors, proc, process
from autotune.cores import Share
from autotune.executors import _spares
from autotune.executors.base import Site
from autotune.trial import FailureKind, Measured

TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "contracts"):
    sys.path.insert(0, str(folder))
contract = importlib.import_module("executor")
fake = importlib.import_module("autotune_fakes.engine")
count = importlib.import_module("autotune_fakes.workload")
job, collect_all, leftovers = contract.job, contract.collect_all, contract.leftovers
SPARE = (0, "fake")


def site(store, **options):
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake", start_timeout_s=60.0, stop_timeout_s=1.0, standby=True))
    return Site(
        engines={"fake": engine}, workload=count.CountWorkload(count.CountOptions(kind="count")), store=store, study="s", **options
    )


@pytest.fixture
def executor(tmp_path):
    with executors.make("local", site(tmp_path)) as made:
        yield made
    assert leftovers(tmp_path) == []
    assert not list(process.scratch_root().glob("*n"))


def run(executor, number, **values):
    executor.submit(job(number, **values))
    (record,) = collect_all(executor, 1)
    return record


def start_of(record):
    assert isinstance(record.outcome, Measured), record.outcome
    return record.measurement.facts["start"]


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def waiting(executor):
    """The worker that waits, and the interpreter that it holds."""
    spare = executor._spares._waiting[SPARE]
    mine = wait_for(lambda: [one for one in proc.table().values() if one.ppid == spare.worker.pid])
    return spare.worker.pid, mine[0].pid


def test_every_trial_but_the_first_finds_an_interpreter_that_has_imported(executor):
    records = [run(executor, number, speed=100 + number) for number in range(3)]
    assert [start_of(record).get("standby") for record in records] == [None, True, True]
    scratch = []
    for number, record in enumerate(records):
        assert record.effective == {"speed": 100 + number}
        assert record.measurement.facts["stop"].get("survivors") is None
        log = (Path(record.folder) / "engine.log").read_text()
        assert log.count("heavy is imported") == 1 and "ready" in log
        assert record.command[: len(fake.HEAD)] == fake.HEAD
        launched = json.loads((Path(record.folder) / "launch.json").read_text())
        scratch.append(Path(launched["env"]["TMPDIR"]).name)
        assert "core" in {name.removeprefix("start.") for name in record.seconds}
    assert len(scratch[2]) == len(scratch[1]), "a socket's path may have 107 characters, however many trials ran"


def test_a_variable_that_import_has_read_starts_the_launch_from_its_beginning(executor):
    run(executor, 0)
    late = start_of(run(executor, 1, **{"env.FAKE_OTHER": "1"}))
    read = start_of(run(executor, 2, **{"env.FAKE_READ": "1"}))
    assert late["standby"] is True
    assert read["standby"] is False and "FAKE_READ" in read["standby_refused"]


def test_what_waits_belongs_to_no_running_trial(executor, tmp_path):
    run(executor, 0)
    pids = waiting(executor)
    executor.submit(job(1, start_s=30))
    tag = executor._running[0].context.tag
    assert executor._running[0].worker.pid == pids[0], "the worker that waited runs the trial"
    wait_for(lambda: len(process.tagged(tag)) > 1)
    assert pids[1] in process.tagged(tag)
    assert {proc.parse_tag(proc.tag_of(pid)).trial for pid in process.tagged(tag)} == {"standby-1"}


@pytest.mark.parametrize("own", [True, False])
def test_without_cores_of_its_own_only_a_study_that_insists_gets_one(tmp_path, monkeypatch, own):
    ahead = fake.FakeEngine.ahead
    monkeypatch.setattr(fake.FakeEngine, "ahead", lambda self, cache: dataclasses.replace(ahead(self, cache), insist=False))
    core = min(os.sched_getaffinity(0))
    with executors.make("local", site(tmp_path)) as executor:
        vars(executor)["_cores"] = Apart(Share(standby=(core,) if own else ()))
        run(executor, 0)
        assert ("standby" in start_of(run(executor, 1))) == own


class Apart:
    """Gives every trial the same share."""

    def __init__(self, share):
        self.share = share

    def take(self, near):
        return self.share

    def give_back(self, share):
        assert share is self.share


def test_engine_clients_and_what_waits_run_on_cores_of_their_own(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    first, last = cores[0], cores[-1]
    on = lambda pid: os.sched_getaffinity(pid)  # noqa: E731
    with executors.make("local", site(tmp_path)) as executor:
        vars(executor)["_cores"] = Apart(Share(engine=(last,), client=(first,), standby=(first,)))
        run(executor, 0)
        worker, interpreter = waiting(executor)
        assert on(interpreter) == {first} and on(worker) == set(cores)
        executor.submit(job(1, start_s=30))
        wait_for(lambda: on(interpreter) == {last} and on(worker) == {first})
        child = wait_for(lambda: [one.pid for one in proc.table().values() if one.ppid == interpreter])[0]
        assert on(child) == {last}


def test_a_killed_worker_is_given_no_trial_before_its_forkserver_has_noticed(executor):
    run(executor, 0)
    worker = waiting(executor)[0]
    spare = executor._spares._waiting[SPARE]
    server = proc.look(worker).ppid
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: (one := proc.look(worker)) is None or one.ended)
        assert spare.worker.is_alive() and not _spares._lives(spare)
    finally:
        os.kill(server, signal.SIGCONT)


@pytest.mark.parametrize("which", [0, 1])
def test_one_that_is_killed_while_it_waits_costs_nothing(executor, tmp_path, which):
    run(executor, 0)
    pids = waiting(executor)
    os.kill(pids[which], signal.SIGKILL)
    # A worker's threads end one after the other, and its interpreter with the first of them.
    for pid in pids[which:]:
        wait_for(lambda pid=pid: (one := proc.look(pid)) is None or one.ended)
    start = start_of(run(executor, 1))
    if which:
        assert start["standby"] is False and "status -9" in start["standby_refused"]
    else:
        assert "standby" not in start, "the worker is gone, and nobody knew of its interpreter"
    assert start_of(run(executor, 2))["standby"] is True


def test_one_that_is_killed_as_it_takes_the_launch_is_a_machine_fault(executor, tmp_path):
    run(executor, 0)
    _, pid = waiting(executor)
    os.kill(pid, signal.SIGSTOP)
    executor.submit(job(1))
    wait_for(lambda: (executor.collect(0.05), (Path(executor._running[0].context.folder) / "launch.json").is_file())[1])
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    (record,) = collect_all(executor, 1)
    assert record.outcome.kind is FailureKind.MACHINE_FAULT, record.outcome
    assert leftovers(tmp_path) == []
    assert isinstance(run(executor, 1, start_s=0.05).outcome, Measured)


def test_closing_ends_what_waits(tmp_path):
    with executors.make("local", site(tmp_path)) as executor:
        run(executor, 0)
        pids = waiting(executor)
    assert all((one := proc.look(pid)) is None or one.ended for pid in pids)
    assert leftovers(tmp_path) == []


def test_a_study_that_wants_none_gets_none(tmp_path):
    engine = fake.FakeEngine(fake.FakeOptions(kind="fake"))
    load = count.CountWorkload(count.CountOptions(kind="count"))
    with executors.make("local", Site(engines={"fake": engine}, workload=load, store=tmp_path, study="s")) as executor:
        records = [run(executor, number) for number in range(2)]
        assert executor._spares._waiting == {}
    assert all("standby" not in start_of(record) for record in records)


DRIVER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import test_standby
from autotune import executors
if __name__ == "__main__":
    with executors.make("local", test_standby.site(Path(sys.argv[1]))) as one:
        test_standby.run(one, 0)
        test_standby.waiting(one)
        print("waiting", flush=True)
        time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_leaves_nothing_that_waits(tmp_path, number):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(paths=[str(Path(__file__).parent), str(TESTS / "fakes"), str(TESTS / "contracts")]))
    argv = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        assert driver.stdout.readline() == "waiting\n"
        assert leftovers(tmp_path)
        driver.send_signal(number)
        driver.wait()
    wait_for(lambda: not leftovers(tmp_path), 30)
    process.reap(tmp_path)
    assert not list(process.scratch_root().parent.glob(f"autotune-*-{driver.pid}-*"))
