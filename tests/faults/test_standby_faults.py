"""Whole studies whose trials find an interpreter waiting, struck where that is: the same table, and nothing left."""

import importlib
import os
import random
import signal
import time

import pytest

from autotune import ledger

rigs = importlib.import_module("rig")


def make(folder, standby):
    one = rigs.Rig(folder, trials=4)
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(text.replace("kind: fake,", "kind: fake, standby: true,") if standby else text)
    return one


@pytest.fixture
def rig(tmp_path):
    one = make(tmp_path / "struck", standby=True)
    yield one
    one.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of an undisturbed study without standby."""
    one = make(tmp_path_factory.mktemp("undisturbed"), standby=False)
    try:
        assert one.run() == 0, one.log()
        return one.table()
    finally:
        one.close()


def records(one):
    return len(one.history().records) if (one.study / ledger.FILE).exists() else 0


def interpreters(one):
    """Those that wait, and those that a trial runs in."""
    return [pid for pid in rigs.own_processes(one.store) if "waiting.py" in rigs.command_line(pid)]


def adopted(one):
    starts = [record.measurement.facts["start"] for record in one.history().records.values() if record.measurement]
    return sum(start.get("standby") is True for start in starts)


@pytest.mark.slow
def test_an_undisturbed_study_measures_the_same_and_leaves_nothing(rig, expected):
    assert rig.run() == 0, rig.log()
    assert rig.table() == expected
    assert adopted(rig) >= 2
    assert rig.left() == []


@pytest.mark.slow
def test_a_driver_killed_beside_one_that_waits_is_resumed(rig, expected):
    driver = rig.start()
    deadline = time.monotonic() + 60
    while not (records(rig) and interpreters(rig)):
        assert time.monotonic() < deadline and driver.poll() is None, rig.log()
        time.sleep(0.01)
    rigs.end(driver)
    while interpreters(rig):
        assert time.monotonic() < deadline, "they end by themselves"
        time.sleep(0.05)
    assert rig.run() == 0, rig.log()
    assert rig.table() == expected
    assert rig.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killing_those_that_wait_changes_no_result(rig, expected, seed):
    driver, rng, killed = rig.start(), random.Random(seed), 0
    deadline = time.monotonic() + 120
    while driver.poll() is None:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(rng.uniform(0.02, 0.2))
        found = interpreters(rig)
        if found and not killed:  # killed twice, a trial would count as crashed
            try:
                os.kill(rng.choice(found), signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
    assert killed and driver.returncode == 0, rig.log()
    assert rig.table() == expected
    assert rig.left() == []
