"""Interpreters that import ahead for spawned processes: such a process is what a plainly spawned one would be."""

import json
import os
import resource
import signal
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
UNUSUAL = """
import json, multiprocessing, os, signal, sys, time
from pathlib import Path

def child(ours):
    import heavy_for_test as heavy
    ours.send({
        "ahead": heavy.AHEAD, "poor": heavy.POOR, "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "idle": any(os.sched_getscheduler(int(one)) == os.SCHED_IDLE for one in os.listdir("/proc/self/task")),
    })

def started():
    ours, theirs = spawn.Pipe()
    one = spawn.Process(target=child, args=(theirs,))
    one.start()
    told = ours.recv()
    one.join()
    print("FOUND " + json.dumps({**told, "status": one.exitcode}), flush=True)

def waiting():
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if "spawned.py" in Path(f"/proc/{pid}/cmdline").read_text()]

def forked():
    pid = os.fork()
    if pid == 0:
        started()
        os._exit(0)
    os.waitpid(pid, 0)

def wrapped():
    wrapper = Path("wrapper.sh").absolute()
    wrapper.write_text(f'#!/bin/sh\\nexec {sys.executable} "$@"')
    wrapper.chmod(0o700)
    multiprocessing.set_executable(str(wrapper))
    started()
    multiprocessing.set_executable(sys.executable)

def interrupted():
    for pid in waiting():
        os.kill(pid, signal.SIGSTOP)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        started()
    except KeyboardInterrupt:
        assert len(waiting()) == 1
    for pid in waiting():
        os.kill(pid, signal.SIGCONT)

def heeding():
    signal.signal(signal.SIGINT, lambda *_: None)
    started()

def passed_over():
    for pid in waiting():
        while len(os.listdir(f"/proc/{pid}/task")) == 1:
            time.sleep(0.02)
        for one in os.listdir(f"/proc/{pid}/task"):
            if int(one) != pid:
                os.sched_setscheduler(int(one), os.SCHED_IDLE, os.sched_param(0))
    started()

def plain():
    started()

if __name__ == "__main__":
    os.environ["EXPECTED"] = "1"
    os.umask = None  # which is the whole process's, with threads that make files
    spawn = multiprocessing.get_context("spawn")
    globals()[json.loads(sys.argv[1])]()
    started()
    print("FOUND " + json.dumps({"waiting": len(waiting())}))
"""
HEAVY = """
import contextlib, multiprocessing, os, other_for_test, threading, time
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
POOR = False
with contextlib.ExitStack() as files:
    try:
        for _ in range(200):
            files.enter_context(open(os.devnull))
    except OSError:
        POOR = True
AHEAD = multiprocessing.current_process().name == "MainProcess"
READ = os.environ.get("READ_EARLY")
"""


@pytest.fixture
def place(tmp_path):
    """A program that spawns two processes; a call launches it with so many interpreters that wait for those, or plainly."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "unusual.py").write_text(UNUSUAL)
    (tmp_path / "heavy_for_test.py").write_text(HEAVY)
    (tmp_path / "other_for_test.py").write_text("")
    started = []

    def launch(count, sets, strike=lambda pid: None, program="program.py"):
        head = (sys.executable, str(tmp_path / program))
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


@pytest.mark.parametrize(
    ("way", "expected"),
    [("forked", [False, True]), ("wrapped", [False, True]), ("interrupted", [True])],
)
def test_one_that_a_process_cannot_have_is_not_kept(place, way, expected):
    """A fork's processes are none of its parent's, and another program, such as numactl, is to start others."""
    (*found, left), log = place(2, way, program="unusual.py")
    assert [told["ahead"] for told in found] == expected and all(told["status"] == 0 for told in found), log
    assert left == {"waiting": 1 if way == "forked" else 0}, log


def test_signals_that_were_ignored_when_it_began_are_its_parents_to_ignore(place):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        (*plain, _), _ = place(None, "heeding", program="unusual.py")
        (*ahead, _), log = place(2, "heeding", program="unusual.py")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [told["ahead"] for told in ahead] == [True, True], log
    assert [told["interrupt"] for told in ahead] == [told["interrupt"] for told in plain]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a thread another priority and take it back")
def test_no_thread_of_it_stays_idle(place):
    (*found, _), log = place(2, "passed_over", program="unusual.py")
    assert [(told["ahead"], told["idle"]) for told in found] == [(True, False)] * 2, log


def test_where_few_files_may_be_open_none_imports_with_fewer(place):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        (*found, _), log = place(2, "plain", program="unusual.py")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [(told["ahead"], told["poor"]) for told in found] == [(False, False)] * 2, log


def test_they_wait_where_the_path_is_safe(tmp_path):
    tag = process.make_tag(tmp_path, "s", 0)
    ahead = Ahead((sys.executable, "-m", "json.tool"), ("json",), env={"PYTHONSAFEPATH": "1"}, spawned=Spawned(1, ("json",)))
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1) as waiting:
        assert waiting.imported(60), (tmp_path / standby.LOG).read_text()
        (pid,) = children(waiting.process.pid)
        deadline = time.monotonic() + 60
        while not Path(f"/proc/{pid}/fd/256").exists():
            assert time.monotonic() < deadline, (tmp_path / standby.LOG).read_text()
            time.sleep(0.05)


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
