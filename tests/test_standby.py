"""An interpreter that imports ahead: what is launched in it is what would have been launched without it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from autotune import proc, process, standby
from autotune.standby import Ahead, Spawned

PROGRAM = """
import heavy_for_test, json, multiprocessing, os, signal, sys, tempfile

def child(queue):
    queue.put((os.environ.get("AUTOTUNE_TAG"), os.environ.get("LATE_X"), __name__))

if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    one = multiprocessing.get_context("spawn").Process(target=child, args=(queue,))
    one.start()
    told = queue.get()
    one.join()
    tasks = sorted(int(name) for name in os.listdir("/proc/self/task"))
    print("FOUND " + json.dumps({
        "argv": sys.argv, "env": dict(os.environ), "path": sys.path, "cwd": os.getcwd(), "name": __name__, "file": __file__,
        "temporary": tempfile.gettempdir(), "child": told, "stdin": os.read(0, 1).decode(),
        "affinity": [sorted(os.sched_getaffinity(one)) for one in tasks],
        "policy": [os.sched_getscheduler(one) for one in tasks],
        "native": heavy_for_test.native("OMP_NUM_THREADS"),
    }), flush=True)
    sys.exit(7)
"""
HEAVY = """
import ctypes, os, threading, time
os.environ["SET_AT_IMPORT"] = "1"
READ = os.environ.get("LATE_READ")
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
def native(name):
    return (getenv(name.encode()) or b"").decode()
THREADS_AT_IMPORT = native("OMP_NUM_THREADS")
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print("imported", flush=True)
"""


@pytest.fixture
def place(tmp_path):
    """A program, what it imports, and a call that launches it, with or without an interpreter that waits."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "heavy_for_test.py").write_text(HEAVY)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    head = (sys.executable, str(tmp_path / "program.py"))
    ahead = Ahead(head, ("heavy_for_test", "no_such_module"), env={"FIXED": "1", "PYTHONUNBUFFERED": "1"}, late=("LATE_",))
    started = []

    def launch(waiting, env=(), strike=lambda one: None, argv=(*head, "one", "two")):
        number = len(started)
        tag, log = process.make_tag(tmp_path, "s", number), tmp_path / f"{number}.log"
        start = {"env": {**ahead.env, "TMPDIR": str(scratch), **dict(env)}, "cwd": scratch, "log": log, "tag": tag, "cpus": ()}
        if not waiting:
            one, spare = standby.start(argv, **start)
        else:
            cpus = [min(os.sched_getaffinity(0))]
            with standby.held(ahead, env={"TMPDIR": str(scratch)}, scratch=scratch, tag=tag, cpus=cpus, threads=5):
                strike(standby._held[tag])
                one, spare = standby.start(argv, **start)
                one.popen.wait(60)
                facts = spare.facts()
        one.popen.wait(60)
        started.append(one)
        found = [json.loads(line[6:]) for line in log.read_text().splitlines() if line.startswith("FOUND ")]
        return one, (found[0] if found else None), (facts if waiting else {}), log.read_text()

    yield launch
    for one in started:
        one.stop(0.0)


def same(found):
    """What must not depend on who started it."""
    env = {name: value for name, value in found["env"].items() if name != "AUTOTUNE_TAG"}
    return {**{name: value for name, value in found.items() if name not in ("child",)}, "env": env, "child": found["child"][1:]}


def test_a_launch_in_it_is_the_launch_without_it(place):
    plain, expected, nothing, _ = place(False)
    adopted, found, facts, log = place(True)
    assert nothing == {} and facts == {"standby": True}, facts
    assert same(found) == same(expected)
    assert found["argv"][1:] == ["one", "two"] and found["name"] == "__main__"
    assert (adopted.returncode(), plain.returncode()) == (7, 7)
    assert found["env"]["AUTOTUNE_TAG"] == found["child"][0] == adopted.tag
    assert found["env"]["SET_AT_IMPORT"] == "1"
    assert log.count("imported") == 2 and log.index("imported") < log.index("FOUND"), "its own import, then its child's"


def test_a_late_variable_reaches_it(place):
    _, expected, _, _ = place(False, {"LATE_X": "5"})
    _, found, facts, _ = place(True, {"LATE_X": "5"})
    assert facts == {"standby": True} and found["env"]["LATE_X"] == "5" == found["child"][1]
    assert same(found) == same(expected)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"LATE_READ": "1"}, "LATE_READ was looked up"),
        ({"NATIVE": "1"}, "NATIVE is not what it imported with"),
        ({"FIXED": "2"}, "FIXED is not what it imported with"),
        ({"SET_AT_IMPORT": "2"}, "SET_AT_IMPORT was looked up or set"),
    ],
)
def test_what_was_read_too_early_starts_the_launch_from_its_beginning(place, env, reason):
    _, expected, _, _ = place(False, env)
    one, found, facts, log = place(True, env)
    assert facts["standby"] is False and reason in facts["standby_refused"]
    assert same(found) == same(expected) and one.returncode() == 7
    assert reason in log


DRIVER = """
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = device == CONTEXT; return 0; }
"""


@pytest.mark.parametrize(
    ("context", "forks", "env", "refused"),
    [
        (-1, False, {}, None),
        (-1, True, {}, "CUDA was initialised while it imported"),
        (-1, False, {"CUDA_VISIBLE_DEVICES": "1"}, "CUDA was initialised while it imported"),
        (1, False, {}, "the interpreter that was to take it had ended with status 1"),
    ],
)
def test_an_import_that_initialises_cuda(tmp_path, context, forks, env, refused):
    """On a driver of the test's own, for every case; on a GPU the engines' trials show which one is theirs."""
    driver = tmp_path / "libcuda.so.1"
    build = ["cc", "-shared", f"-DCONTEXT={context}", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(driver)]
    subprocess.run(build, input=DRIVER.encode(), check=True)
    (tmp_path / "touching.py").write_text(f"import ctypes\nctypes.CDLL({str(driver)!r}, ctypes.RTLD_GLOBAL)\n")
    (tmp_path / "program.py").write_text("print('ran')")
    head, tag = (sys.executable, str(tmp_path / "program.py")), process.make_tag(tmp_path, "s", 0)
    ahead = Ahead(head, ("touching",), spawned=None if forks else Spawned(0, ()))
    with standby.held(ahead, env={}, scratch=tmp_path / "scratch", tag=tag, cpus=(), threads=1) as waiting:
        if not waiting.imported(60):
            waiting.process.popen.wait(60)
        one, _ = standby.start(head, env=env, cwd=tmp_path, log=tmp_path / "log", tag=tag, cpus=())
        one.popen.wait(60)
        facts = waiting.facts()
    one.stop(0.0)
    assert facts == ({"standby": True} if refused is None else {"standby": False, "standby_refused": refused})
    assert one.returncode() == 0 and "ran" in (tmp_path / "log").read_text()


def test_one_that_is_gone_is_done_without(place):
    def kill(waiting):
        waiting.process.popen.kill()
        waiting.process.popen.wait()

    one, found, facts, _ = place(True, strike=kill)
    assert facts == {"standby": False, "standby_refused": "the interpreter that was to take it had ended with status -9"}
    assert found["argv"][1:] == ["one", "two"] and one.returncode() == 7


def test_one_that_is_killed_as_it_takes_the_launch_is_a_dead_launch(place):
    def stop(waiting):
        os.kill(waiting.process.pid, signal.SIGSTOP)
        took = waiting.take

        def take(*arguments, **options):
            done = took(*arguments, **options)
            waiting.process.popen.kill()
            return done

        waiting.take = take

    one, found, facts, _ = place(True, strike=stop)
    assert one.returncode() == -signal.SIGKILL and found is None
    assert facts["standby"] is False and "ended before it said so" in facts["standby_refused"]


def test_another_programs_launch_is_not_given_to_it(place, tmp_path):
    argv = (sys.executable, "-c", "print('FOUND {}')")
    one, found, facts, _ = place(True, argv=argv)
    assert found == {} and one.returncode() == 0 and "another program's" in facts["standby_refused"]


def test_it_runs_a_package_as_m_does(tmp_path):
    ahead = Ahead((sys.executable, "-m", "json.tool"), ("json",), {})
    tag, log = process.make_tag(tmp_path, "s", 0), tmp_path / "log"
    (tmp_path / "in.json").write_text('{"a": 1}')
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1):
        argv = (*ahead.head, "--compact", str(tmp_path / "in.json"))
        one, spare = standby.start(argv, env={}, cwd=tmp_path, log=log, tag=tag, cpus=())
        assert one.popen.wait(60) == 0 and spare.facts() == {"standby": True}
    assert log.read_text() == '{"a":1}\n'


def test_cores_that_it_may_not_use_are_passed_over_as_they_are_without_it(tmp_path):
    ahead = Ahead((sys.executable, "-m", "json.tool"), ("json",))
    (tmp_path / "in.json").write_text("{}")
    argv, none = (*ahead.head, str(tmp_path / "in.json")), (max(os.sched_getaffinity(0)) + 1000,)
    for number, waits in enumerate((False, True)):
        tag, log = process.make_tag(tmp_path, "s", number), tmp_path / f"log{number}"
        with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1) if waits else contextlib.nullcontext():
            one, _ = standby.start(argv, env={}, cwd=tmp_path, log=log, tag=tag, cpus=none)
            assert one.popen.wait(60) == 0, log.read_text()


def test_one_that_nothing_was_launched_in_is_ended(tmp_path):
    ahead = Ahead((sys.executable, str(tmp_path / "program.py")), ("json",))
    tag = process.make_tag(tmp_path, "s", 0)
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=(), threads=1) as waiting:
        assert waiting.imported(60), "a process just born does not show its tag yet"
        (pid,) = process.tagged(tag)
    assert process.tagged(tag) == [] and proc.look(pid) is None
    assert standby.start((sys.executable, "-c", ""), env={}, cwd=tmp_path, log=tmp_path / "l", tag=tag, cpus=())[1] is None


def test_while_it_waits_it_is_out_of_the_way(tmp_path):
    ahead = Ahead((sys.executable, str(tmp_path / "program.py")), ("json",))
    tag, core = process.make_tag(tmp_path, "s", 0), max(os.sched_getaffinity(0))
    with standby.held(ahead, env={}, scratch=tmp_path, tag=tag, cpus=[core], threads=1):
        pid = standby._held[tag].process.pid
        assert os.sched_getaffinity(pid) == {core}
        assert standby._held[tag].imported(60)
        deadline = time.monotonic() + 30
        while may_return_from_idle() and os.sched_getscheduler(pid) != os.SCHED_IDLE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def may_return_from_idle():
    return os.geteuid() == 0


PARENT = """
import os, sys, time
from pathlib import Path
from autotune import standby
from autotune.standby import Ahead, Spawned
ahead = Ahead((sys.executable, "x.py"), ("json",))
with standby.held(ahead, env={}, scratch=Path(sys.argv[1]), tag=sys.argv[2], cpus=(), threads=1):
    print("held", flush=True)
    time.sleep(3600)
"""


def test_it_ends_with_the_process_that_holds_it(tmp_path):
    tag, mark = process.make_tag(tmp_path, "s", 0), process.make_tag(tmp_path, "s", 1)
    argv = (sys.executable, "-c", PARENT, str(tmp_path), tag)
    with process.start(argv, env={}, cwd=tmp_path, log=tmp_path / "log", tag=mark) as parent:
        deadline = time.monotonic() + 60
        while not process.tagged(tag):
            assert time.monotonic() < deadline and parent.alive()
            time.sleep(0.02)
        parent.popen.kill()
        while process.tagged(tag):
            assert time.monotonic() < deadline
            time.sleep(0.02)
