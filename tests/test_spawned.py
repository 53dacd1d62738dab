"""Interpreters that import ahead for spawned processes: such a process is what a plainly spawned one would be."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from autotune import process, standby
from autotune.standby import Ahead, Spawned

PROGRAM = """
import json, multiprocessing, os, resource, signal, sys, threading

def child(name, events, ours, lock):
    import importlib
    heavy = importlib.import_module("heavy_for_test")
    lock.acquire()
    ours.send({
        "name": name, "ahead": heavy.AHEAD,
        "env": {name: value for name, value in os.environ.items() if name != "AUTOTUNE_TAG"},
        "tag": os.environ.get("AUTOTUNE_TAG"), "parent": os.getppid(), "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(),
        "main": sys.modules["__main__"].__name__, "file": getattr(sys.modules["__main__"], "__file__", None),
        "open": len([one for one in os.listdir("/proc/self/fd") if int(one) < 200]),
        "streams": [os.readlink(f"/proc/self/fd/{one}") for one in (0, 1, 2)],
        "affinity": sorted(os.sched_getaffinity(0)), "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "ignored": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "umask": os.umask(0o22),
        "threads": threading.active_count(), "daemon": multiprocessing.current_process().daemon,
    })
    lock.release()
    events.wait()
    sys.exit(3)

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o27)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    os.environ.update({name: value for name, value in json.loads(sys.argv[1]).items()})
    spawn = multiprocessing.get_context("spawn")
    events, lock = spawn.Event(), spawn.Lock()
    found = []
    for name in ("one", "two"):
        ours, theirs = spawn.Pipe()
        started = spawn.Process(target=child, args=(name, events, theirs, lock), daemon=True)
        started.start()
        found.append((started, ours.recv()))
        theirs.close()
    assert all(told["parent"] == os.getpid() for _, told in found)
    events.set()
    for started, told in found:
        started.join()
        told["status"] = started.exitcode
        print("FOUND " + json.dumps(told), flush=True)
"""
HEAVY = """
import multiprocessing, os, other_for_test
AHEAD = multiprocessing.current_process().name == "MainProcess"
READ = os.environ.get("READ_EARLY")
"""


@pytest.fixture
def place(tmp_path):
    """A program that spawns two processes; a call launches it with so many interpreters that wait for those, or plainly."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "heavy_for_test.py").write_text(HEAVY)
    (tmp_path / "other_for_test.py").write_text("")
    head = (sys.executable, str(tmp_path / "program.py"))
    started = []

    def launch(count, sets, strike=lambda pid: None):
        number = len(started)
        tag, log = process.make_tag(tmp_path, "s", number), tmp_path / f"{number}.log"
        start = {"env": {}, "cwd": tmp_path, "log": log, "tag": tag, "cpus": ()}
        argv = (*head, json.dumps(sets))
        if count is None:
            one, _ = standby.start(argv, **start)
        else:
            spawned = Spawned(count, ("heavy_for_test",), env={"EXPECTED": "1"}, late=("LATE_",))
            ahead = Ahead(head, ("other_for_test",), spawned=spawned)
            with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=[min(os.sched_getaffinity(0))], threads=2) as waiting:
                assert waiting.imported(60)
                for pid in children(waiting.process.pid):
                    strike(pid)
                one, _ = standby.start(argv, **start)
                assert waiting.facts() == {"standby": True}
        started.append(one)
        one.popen.wait(100)
        assert one.popen.returncode == 0, log.read_text()
        return [json.loads(line[6:]) for line in log.read_text().splitlines() if line.startswith("FOUND ")], log.read_text()

    yield launch
    for one in started:
        one.stop(0.0)


def children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def same(told):
    """What must not depend on who spawned it."""
    differs = ("ahead", "parent", "tag")
    return {name: value for name, value in told.items() if name not in differs}


def test_a_process_in_one_is_the_process_without_it(place):
    sets = {"EXPECTED": "1", "LATE_X": "2"}
    plain, _ = place(None, sets)
    ahead, log = place(2, sets)
    assert [told["ahead"] for told in (*plain, *ahead)] == [False, False, True, True], log
    assert [same(told) for told in ahead] == [
        {**same(told), "streams": found["streams"]} for told, found in zip(plain, ahead, strict=True)
    ]
    assert all(told["streams"][1].endswith(".log") and told["tag"] for told in ahead)
    assert [told["status"] for told in ahead] == [3, 3]


def test_more_processes_than_wait_are_spawned(place):
    sets = {"EXPECTED": "1"}
    found, _ = place(1, sets)
    assert sorted(told["ahead"] for told in found) == [False, True]


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ({"EXPECTED": "1", "READ_EARLY": "1"}, "READ_EARLY was looked up or set"),
        ({"EXPECTED": "2"}, "EXPECTED is not what it imported with"),
        ({}, "EXPECTED is not what it imported with"),
    ],
)
def test_what_was_read_too_early_is_spawned(place, sets, reason):
    plain, _ = place(None, sets)
    found, log = place(2, sets)
    assert log.count(f"A process starts with imports of its own: {reason}") == 2
    assert [told["ahead"] for told in found] == [False, False]
    assert [same(told)["env"] for told in found] == [same(told)["env"] for told in plain]


def test_one_that_was_killed_is_done_without(place):
    found, log = place(2, {"EXPECTED": "1"}, strike=lambda pid: os.kill(pid, 9))
    assert [told["status"] for told in found] == [3, 3] and "A process starts with imports of its own" in log


def test_they_end_with_the_one_that_waits(tmp_path):
    tag = process.make_tag(tmp_path, "s", 0)
    ahead = Ahead((sys.executable, "-m", "json"), ("json",), spawned=Spawned(2, ("json",)))
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1) as waiting:
        assert waiting.imported(60)
        pids = children(waiting.process.pid)
        assert len(pids) == 2
        os.kill(waiting.process.pid, 9)
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_launch_that_starts_from_its_beginning_leaves_none(tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys\nprint('CHILDREN', open('/proc/self/task/%d/children' % __import__('os').getpid()).read())"
    )
    head, tag = (sys.executable, str(tmp_path / "program.py")), process.make_tag(tmp_path, "s", 0)
    ahead = Ahead(head, ("json",), env={"FIXED": "1"}, spawned=Spawned(2, ("json",)))
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1) as waiting:
        assert waiting.imported(60)
        one, _ = standby.start(head, env={"FIXED": "2"}, cwd=tmp_path, log=tmp_path / "log", tag=tag, cpus=())
        one.popen.wait(60)
    one.stop(0.0)
    assert [line.split() for line in (tmp_path / "log").read_text().splitlines() if "CHILDREN" in line] == [["CHILDREN"]]
