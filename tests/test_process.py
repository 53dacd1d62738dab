"""Every test starts real processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune import proc, process
from autotune.errors import AutotuneError, MissingPrerequisite

PYTHON = sys.executable
LISTEN = """
import socket,sys,time
s=socket.socket(); s.bind(('127.0.0.1',int(sys.argv[1]))); s.listen()
print('up',flush=True); time.sleep(60)
"""


@pytest.fixture
def tag(tmp_path):
    return process.make_tag(tmp_path, "study", 3, 1)


@pytest.fixture
def begin(tmp_path, tag):
    started = []

    def begin(code, *args, env=None, **kwargs):
        one = process.start(
            [PYTHON, "-c", code, *map(str, args)], env=env or {}, cwd=tmp_path, log=tmp_path / "log.txt", tag=tag, **kwargs
        )
        started.append(one)
        return one

    yield begin
    for one in started:
        assert one.stop(0).survivors == ()
    assert process.tagged(tag) == []


def wait_line(one, text):
    for line in one.follow(0.02):
        if text in line:
            return line
    raise AssertionError(process.tail(one.log))


def test_a_process_has_a_session_a_tag_and_no_credentials(begin, monkeypatch, tag):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "needed")
    one = begin(
        "import os;e=os.environ;print(os.getsid(0)==os.getpid(),e['AUTOTUNE_TAG'],e.get('WANDB_API_KEY'),e['HF_TOKEN'],e['A'])",
        env={"A": "$(b)"},
    )
    assert list(one.follow(0.02)) == [f"True {tag} None needed $(b)"]


def test_an_engine_that_uses_ray_starts_its_own(monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_RAYLET_PID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    assert {name for name in process.inherited_environment() if name.startswith("RAY_")} == {"RAY_DEDUP_LOGS"}


def test_stop_ends_children_that_changed_session_and_ignore_term(begin, tag):
    grandchild = "import signal,time;signal.signal(signal.SIGTERM,signal.SIG_IGN);time.sleep(60)"
    one = begin(
        "import subprocess,sys,time\n"
        f"p=subprocess.Popen([sys.executable,'-c',{grandchild!r}],start_new_session=True);print('up',p.pid,flush=True);time.sleep(60)"
    )
    pid = int(wait_line(one, "up").split()[1])
    time.sleep(0.3)
    report = one.stop(1.0)
    assert report.survivors == () and report.killed == 1 and report.returncode == -signal.SIGTERM
    assert proc.look(pid) is None or proc.look(pid).ended
    assert one.stop() is report


def test_a_stopped_process_is_ended_by_term(begin):
    one = begin("import time;print('up',flush=True);time.sleep(60)")
    wait_line(one, "up")
    os.kill(one.pid, signal.SIGSTOP)
    report = one.stop(5.0)
    assert (report.returncode, report.killed) == (-signal.SIGTERM, 0)


def test_children_are_found_after_their_parent_was_killed(begin):
    one = begin("import os,time\nos.fork()\nprint('up',flush=True);time.sleep(60)")
    wait_line(one, "up")
    wait_line(one, "up")
    os.kill(one.pid, signal.SIGKILL)
    one.popen.wait()
    assert not one.alive() and len(one.members()) == 1
    assert one.stop(0.5).survivors == ()


def test_a_child_that_hides_its_environment_is_found_by_its_session(begin, tmp_path, tag):
    one = begin(
        "import subprocess,sys,time\n"
        "subprocess.Popen([sys.executable,'-c','import time;time.sleep(60)'],env={});print('up',flush=True);time.sleep(60)"
    )
    wait_line(one, "up")
    assert len(process.tagged(tag)) == 1 and len(one.members()) == 2


def test_output_without_a_reader_never_blocks(begin):
    one = begin("print('x'*5_000_000);print('end')")
    assert one.popen.wait(20) == 0
    assert process.tail(one.log, 1) == ["end"]


def test_port_ownership_is_proved_not_assumed(begin, tag, tmp_path):
    port = process.free_port()
    assert process.port_listener(port) is None and not process.answers_for(port, tag)
    one = begin(LISTEN, port)
    wait_line(one, "up")
    assert process.port_listener(port) == one.pid and process.answers_for(port, tag)
    assert not process.answers_for(port, process.make_tag(tmp_path, "study", 3, 1))
    assert not process.wait_gone(port, 0.1)
    one.stop()
    assert process.wait_gone(port, 1)


def test_a_port_shared_with_a_stranger_is_not_ours(begin, tag):
    share = LISTEN.replace("s.bind", "s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1);s.bind")
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        one = begin(share, port)
        wait_line(one, "up")
        assert not process.answers_for(port, tag)


def test_a_missing_program_is_a_clear_message(tmp_path, tag):
    with pytest.raises(MissingPrerequisite, match="no-such-program"):
        process.start(["no-such-program"], env={}, cwd=tmp_path, log=tmp_path / "l", tag=tag)
    with pytest.raises(AutotuneError, match="embedded null"):
        process.start([PYTHON, "a\0b"], env={}, cwd=tmp_path, log=tmp_path / "l", tag=tag)


def test_cores_are_those_asked_for_and_only_the_childs(begin):
    before = os.sched_getaffinity(0)
    core = min(before)
    one = begin("import os;print(os.sched_getaffinity(0))", cpus=[core])
    assert list(one.follow(0.02)) == [str({core})]
    assert os.sched_getaffinity(0) == before


def test_run_returns_output_and_ends_a_whole_tree_at_its_timeout():
    done = process.run([PYTHON, "-c", "import sys;print(sys.stdin.read());sys.exit(3)"], 20, stdin="ä;rm -rf")
    assert (done.returncode, done.stdout, done.timed_out) == (3, "ä;rm -rf\n", False)
    done = process.run([PYTHON, "-c", "import os,time;os.fork();print(os.getpid(),flush=True);time.sleep(60)"], 1.0)
    assert done.timed_out and done.returncode != 0
    assert all(proc.look(int(pid)) is None or proc.look(int(pid)).ended for pid in done.stdout.split())


DRIVER = """
import sys,time
from pathlib import Path
from autotune import process
store=Path(sys.argv[1])
root=process.scratch_root()
argv=[sys.executable,'-c','import os,time;os.fork();time.sleep(60)']
one=process.start(argv,env={},cwd=store,log=store/'log',tag=process.make_tag(store,'s',1,1))
print(one.pid,root,flush=True)
time.sleep(60)
"""


def test_reap_ends_what_a_killed_driver_left_and_nothing_else(begin, tmp_path, tag):
    mine = begin("import time;print('up',flush=True);time.sleep(60)")
    wait_line(mine, "up")
    drivers = [subprocess.Popen([PYTHON, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        lines = [driver.stdout.readline().split() for driver in drivers]
        time.sleep(0.3)
        drivers[0].kill()
        drivers[0].wait()
        reaped = process.reap(tmp_path)
        assert [(one.study, one.trial, len(one.pids), one.survivors) for one in reaped] == [("s", "1-1", 2, ())]
        assert int(lines[0][0]) in reaped[0].pids
        assert not Path(lines[0][1]).exists() and Path(lines[1][1]).exists()
        assert mine.alive() and proc.look(int(lines[1][0])) is not None
        assert process.reap(tmp_path / "other") == []
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
            driver.stdout.close()
        process.reap(tmp_path)
    assert not Path(lines[1][1]).exists()


def test_what_was_started_for_no_trial_yet_is_not_called_one(tmp_path):
    def said(trial):
        named = proc.parse_tag(process.make_tag(tmp_path, "s", trial, 2 if trial == 7 else 1)).trial
        return str(process.Reaped("s", named, (1,), ()))

    assert said(7) == "1 process of trial 7-2 of study s"
    for name in ("standby", "tracking", "workers"):
        assert f"trial {name}" not in said(name) and said(name).endswith(" of study s")


def test_a_reused_pid_is_another_process(begin, tag):
    one = begin("import time;print('up',flush=True);time.sleep(60)")
    wait_line(one, "up")
    other = proc.members(None, (one.pid, one.identity[1] - 1))
    assert other == []
    parsed = proc.parse_tag(tag)
    assert proc.driver_alive(parsed)
    dead = proc.Tag(**{**{name: getattr(parsed, name) for name in parsed.__slots__}, "driver_start": parsed.driver_start - 1})
    elsewhere = proc.Tag(**{**{name: getattr(dead, name) for name in dead.__slots__}, "namespace": 1})
    assert not proc.driver_alive(dead) and proc.driver_alive(elsewhere)


def test_peak_memory_sees_a_child_that_came_and_went(begin):
    one = begin(
        "import subprocess,sys\n"
        "print('up',flush=True)\n"
        "subprocess.run([sys.executable,'-c','import time;x=bytearray(200<<20);time.sleep(2)']);import time;time.sleep(60)"
    )
    with process.PeakMemory(one.members, 0.1) as peak:
        time.sleep(2.5)
    assert 200 << 20 < peak.peak_bytes < 400 << 20
    assert peak.method in ("pss", "rss")


def test_tail_and_reader_keep_partial_lines_for_later(tmp_path):
    log = tmp_path / "log"
    assert process.tail(log) == []
    reader = process.LogReader(log)
    assert reader.lines() == []
    log.write_bytes(b"one\ntw")
    assert reader.lines() == ["one"]
    with log.open("ab") as stream:
        stream.write(b"o\n\xff")
    assert reader.lines() == ["two"] and reader.lines(final=True) == ["\ufffd"]
    log.write_text("".join(f"{i}\n" for i in range(1000)))
    assert process.tail(log, 2, limit_bytes=50) == ["998", "999"]


def test_a_scratch_folder_is_closed_to_others_and_never_a_strangers(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = process.scratch_root()
    assert root.stat().st_mode & 0o777 == 0o700 and process.scratch_root() == root
    root.rmdir()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AutotuneError, match="belongs to somebody else"):
        process.scratch_root()


def test_a_folder_apart_is_removed_once_its_driver_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = process.make_tag(tmp_path, "s", 1)
    me = proc.look(os.getpid())
    gone = mine.replace(f":{me.pid}:{me.start}:", f":{me.pid}:{me.start - 1}:")
    for name, tag in (("at-mine", mine), ("at-gone", gone), ("at-strange", "at1:what"), ("other", gone)):
        process.make_apart(tmp_path / name, tag)
    (tmp_path / "at-nobodys").mkdir()
    (tmp_path / "at-link").symlink_to(tmp_path / "other")
    process.reap(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"at-mine", "at-strange", "other", "at-nobodys", "at-link"}


SHARED = """
import os, signal, sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
mine, named = SharedMemory(create=True, size=4096), SharedMemory("autotune_test", create=True, size=4096)
print(mine.name, flush=True)
os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
time.sleep(60)
"""


@pytest.fixture
def sharing(tmp_path):
    """A process with shared memory that has only a random name, and that memory's file."""
    log, kept = tmp_path / "log", Path("/dev/shm/autotune_test")
    with process.start([PYTHON, "-c", SHARED], env={}, cwd=tmp_path, log=log, tag=process.make_tag(tmp_path, "s", 1)) as one:
        deadline = time.monotonic() + 30
        while not log.read_text().endswith("\n"):
            assert time.monotonic() < deadline and one.alive(), log.read_text()
            time.sleep(0.02)
        mine = Path("/dev/shm") / log.read_text().strip()
        assert mine.exists()
        yield one, mine
    assert kept.exists(), "one with a name of its own may be meant for others"
    kept.unlink()


def test_shared_memory_that_nobody_can_find_any_more_is_removed(sharing):
    one, mine = sharing
    one.stop()
    assert not mine.exists()


def test_shared_memory_of_what_died_by_itself_is_removed(sharing):
    one, mine = sharing
    one.note_segments()
    one.popen.kill()
    one.popen.wait()
    assert mine.exists()
    one.stop()
    assert not mine.exists()


def test_shared_memory_of_what_a_killed_driver_left_is_removed(tmp_path):
    code = DRIVER.replace("'import os,time;os.fork();time.sleep(60)'", repr(SHARED))
    with subprocess.Popen([PYTHON, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as driver:
        try:
            driver.stdout.readline()
            while not (said := (tmp_path / "log").read_text()).endswith("\n"):
                time.sleep(0.02)
            mine = Path("/dev/shm") / said.strip()
            assert mine.exists()
        finally:
            driver.kill()
            driver.wait()
            assert [len(reaped.pids) for reaped in process.reap(tmp_path)] == [1]
            Path("/dev/shm/autotune_test").unlink(missing_ok=True)
    assert not mine.exists()
