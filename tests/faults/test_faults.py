"""Faults other than a kill: a full disk, a read-only folder, a jumping clock, stopped processes, the user's Ctrl-C."""

import importlib
import os
import random
import resource
import signal
import threading
import time

import pytest

from autotune import ledger, process
from autotune.trial import FailureKind

rigs = importlib.import_module("rig")


@pytest.fixture
def rig(tmp_path):
    made = []

    def rig(**options):
        made.append(rigs.Rig(tmp_path / str(len(made)), **options))
        return made[-1]

    yield rig
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of an undisturbed study."""
    one = rigs.Rig(tmp_path_factory.mktemp("undisturbed"), trials=3)
    try:
        assert one.run() == 0, one.log()
        return one.table()
    finally:
        one.close()


def wait_for(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def records(one):
    return len(one.history().records) if (one.study / ledger.FILE).exists() else 0


def find(one, role):
    return next((found for found, tag in rigs.own_processes(one.store).values() if rigs.role(found, tag) == role), None)


def resumed(one, expected):
    """Run to the end and compare."""
    assert one.run() == 0, one.log()
    assert one.table() == expected
    assert one.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("spare", [10, 200, 900, 2500])
def test_a_full_disk_stops_with_one_sentence_and_is_resumed(rig, expected, spare):
    one = rig(trials=3)
    driver = one.start()
    wait_for(lambda: records(one))
    size = (one.study / ledger.FILE).stat().st_size
    resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (size + spare, resource.RLIM_INFINITY))
    assert driver.wait(60) == 5, one.log()
    said = " ".join(one.log().split())
    assert "Cannot write to" in said and "run the study again" in said and "Traceback" not in said
    assert one.left() == []
    assert (one.study / ledger.FILE).read_bytes().endswith(b"}\n")
    resumed(one, expected)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can mount a small disk")
def test_a_disk_that_is_really_full(rig, expected):
    one = rig(trials=3)
    one.store.mkdir()
    mounted = process.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(one.store)], 10)
    if mounted.returncode:
        pytest.skip(f"no mounting here: {mounted.stderr}")
    try:
        assert one.run() in (0, 1, 5), one.log()
        assert "Traceback" not in one.log()
        ledger.read(one.study)
        assert process.run(["mount", "-o", "remount,size=50m", str(one.store)], 10).returncode == 0
        assert one.run() == 0, one.log()
        measured = {number: row for number, row in one.table().items() if row[1] is not None}
        assert measured and all(expected[number] == row for number, row in measured.items())
        assert one.left() == []
    finally:
        process.run(["umount", str(one.store)], 10)


@pytest.fixture
def read_only():
    """Makes folders read-only, for the superuser too, until it is called with `undo`."""
    mounted = []

    def read_only(folder, undo=False):
        if os.geteuid() != 0:
            folder.chmod(0o755 if undo else 0o555)
        elif undo:
            process.run(["umount", str(mounted.pop())], 10)
        elif process.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], 10).returncode:
            pytest.skip("the superuser may write everywhere, and nothing can be mounted here")
        else:
            mounted.append(folder)

    yield read_only
    for folder in mounted:
        process.run(["umount", str(folder)], 10)


@pytest.mark.slow
def test_a_read_only_folder_is_said_before_anything_is_launched(rig, expected, read_only):
    one = rig(trials=3)
    one.study.mkdir(parents=True)
    read_only(one.study)
    assert one.run() == 5, one.log()
    said = " ".join(one.log().split())
    assert "Cannot write to" in said and ("Permission denied" in said or "Read-only" in said) and "Traceback" not in said
    assert not list(one.study.iterdir()) and one.left() == []
    read_only(one.study, undo=True)
    resumed(one, expected)


@pytest.mark.slow
def test_a_jumping_clock_changes_nothing(rig, expected, tmp_path):
    offset = tmp_path / "offset"
    offset.write_text("0")
    one = rig(trials=3, env={"CLOCK_OFFSET_FILE": str(offset)})
    stop = threading.Event()
    random_source = random.Random(5)

    def jump():
        while not stop.wait(0.05):
            offset.write_text(str(random_source.uniform(-1e6, 1e6)))

    jumper = threading.Thread(target=jump)
    jumper.start()
    try:
        resumed(one, expected)
    finally:
        stop.set()
        jumper.join()
    for record in one.history().records.values():
        assert all(0 <= seconds < 30 for seconds in record.seconds.values()), record.seconds
        assert record.measurement.totals["start_s"] < 30
    assert len({round(record.started_at / 3600) for record in one.history().records.values()}) > 1, "the clock did jump"


@pytest.mark.slow
@pytest.mark.parametrize("role", ["engine parent", "engine child", "load client"])
def test_a_process_that_stops_is_ended_and_the_study_goes_on(rig, expected, role):
    one = rig(trials=3, sampler="random")
    driver = one.start()
    stopped = wait_for(lambda: find(one, role))
    os.kill(stopped.pid, signal.SIGSTOP)
    assert driver.wait(90) == 0, one.log()
    table = one.table()
    assert list(table) == list(expected)
    failed = [record for record in one.history().records.values() if not rigs.measured_of(record)]
    kinds = {record.outcome.kind for record in failed}
    assert len(failed) <= 1 and kinds <= {FailureKind.UNHEALTHY, FailureKind.START_TIMEOUT, FailureKind.INCOMPLETE}
    assert one.left() == []


@pytest.mark.slow
def test_a_stopped_driver_goes_on(rig, expected):
    one = rig(trials=3)
    driver = one.start()
    wait_for(lambda: find(one, "engine parent"))
    os.kill(driver.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(driver.pid, signal.SIGCONT)
    assert driver.wait(60) == 0, one.log()
    assert one.table() == expected and one.left() == []


@pytest.mark.slow
def test_ctrl_c_once_finishes_the_running_trial_and_says_how_to_continue(rig, expected):
    one = rig(trials=3, start_s=1.0)
    driver = one.start()
    wait_for(lambda: find(one, "engine parent"))
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130, one.log()
    assert records(one) == 1 and not one.history().in_flight
    assert "Continue it with the same command" in " ".join(one.log().split())
    assert one.left() == []
    resumed(one, expected)


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_twice_and_sigterm_end_now(rig, expected, second):
    one = rig(trials=3, start_s=20.0)
    driver = one.start()
    wait_for(lambda: find(one, "engine parent"))
    os.killpg(driver.pid, signal.SIGINT)
    time.sleep(0.3)
    before = time.monotonic()
    os.kill(driver.pid, second)
    assert driver.wait(60) == 130, one.log()
    assert time.monotonic() - before < 15, "the running trial was waited for"
    assert records(one) == 0 and one.left() == []


@pytest.mark.slow
def test_a_second_driver_is_refused_and_disturbs_nothing(rig, expected):
    one = rig(trials=3, start_s=2.0)
    driver = one.start()
    wait_for(lambda: find(one, "engine parent"))
    assert one.run() == 4, one.log()
    assert f"process {driver.pid} on" in " ".join(one.log().split())
    assert driver.wait(60) == 0, one.log()
    assert [row[1] for row in one.table().values()] == [row[1] for row in expected.values()] and one.left() == []


@pytest.mark.slow
def test_what_nobody_could_end_is_reaped_at_the_next_start_of_any_study(rig, expected):
    one = rig(trials=3, start_s=5.0)
    driver = one.start()
    wait_for(lambda: find(one, "engine child"))
    everyone = [found.pid for found, tag in rigs.own_processes(one.store).values() if tag.trial.startswith("workers")]
    for pid in (driver.pid, *everyone):
        os.kill(pid, signal.SIGKILL)
    driver.wait()
    time.sleep(0.5)
    orphans = rigs.own_processes(one.store)
    assert {rigs.role(found, tag) for found, tag in orphans.values()} == {"engine parent", "engine child"}
    text = (one.folder / "study.yaml").read_text()
    (one.folder / "study.yaml").write_text(text.replace("name: faults", "name: another").replace("start_s: 5.0", "start_s: 0.05"))
    assert one.run() == 0, one.log()
    assert "Ended what an earlier run left behind: 2 processes of trial 0-1 of study faults" in " ".join(one.log().split())
    assert one.left() == []


@pytest.mark.slow
def test_trials_that_ran_at_once_are_each_resumed_once(rig):
    one = rig(trials=6, parallel=2, start_s=0.3)
    for _ in range(2):
        driver = one.start()
        wait_for(
            lambda: (
                len(
                    {
                        tag.trial
                        for found, tag in rigs.own_processes(one.store).values()
                        if "server.py" in rigs.command_line(found.pid)
                    }
                )
                == 2
            )
        )
        driver.kill()
        driver.wait()
        assert len(one.history().in_flight) == 2
    assert one.run() == 0, one.log()
    table = one.table()
    assert list(table) == list(range(6))
    for configuration, rows in table.values():
        assert rows[0]["output_tokens_per_s"] == configuration.get("speed", 100) * 1.5
    assert one.left() == []
