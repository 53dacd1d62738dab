"""Starts processes so that they can be ended completely, ends them, and finds what a killed driver left behind.

The only room that uses `subprocess`. Everything is started in a session of its own, carries AUTOTUNE_TAG in its
environment, writes straight into its log file and never passes through a shell. Nothing is ever ended by name or port:
only by tag, session and descent, each process checked against its start time through a pidfd.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from autotune import proc
from autotune.ending import end
from autotune.errors import AutotuneError, MissingPrerequisite
from autotune.logs import LogReader, tail
from autotune.ports import answers_for, free_port, port_listener, wait_gone
from autotune.proc import TAG_VARIABLE, Proc, make_tag, tagged
from autotune.reaper import Reaped, make_apart, reap, scratch_root
from autotune.resident import PeakMemory, nameless_segments, remove, tree_memory_bytes
from autotune.secrets import is_secret_name
from autotune.trial import Value

__all__ = [
    "Completed",
    "LogReader",
    "PeakMemory",
    "Process",
    "Reaped",
    "StopReport",
    "answers_for",
    "end",
    "environment",
    "free_port",
    "inherited_environment",
    "make_apart",
    "make_tag",
    "port_listener",
    "reap",
    "run",
    "scratch_root",
    "start",
    "tagged",
    "tail",
    "tree_memory_bytes",
    "wait_gone",
]

_KEPT_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
"""Credentials that an engine may need, to fetch the model."""
_DROPPED = ("AUTOTUNE_", "MLFLOW_", "PYTEST_", "TORCHELASTIC_")
_DROPPED_NAMES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONHOME"}
    # An engine that uses Ray starts its own; the cluster that the study runs on has given its GPUs away already.
    | {"RAY_ADDRESS", "RAY_JOB_ID", "RAY_RAYLET_PID"}
)


@dataclass(frozen=True, slots=True)
class StopReport:
    """How the end of a tree went. `killed` counts processes that needed KILL; `survivors` are ids that even that did not end."""

    seconds: float
    returncode: int | None
    killed: int
    survivors: tuple[int, ...]
    was_running: bool
    """Whether the leader had still to be ended: its status is our own doing then."""

    @property
    def facts(self) -> dict[str, Value]:
        """What a session tells of its end."""
        return {"seconds": self.seconds, "returncode": self.returncode, "killed": self.killed, "was_running": self.was_running}


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished helper command. `returncode` is negative for a signal; `timed_out` says that it was ended by us."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False


@dataclass
class Process:
    """A started process and its tree. Leaving it as a context manager stops it."""

    popen: subprocess.Popen[bytes]
    tag: str
    log: Path
    identity: tuple[int, int]
    seen: set[tuple[int, int]] = field(default_factory=set)
    """Every member ever looked at, so that one that left session, tag and parent behind is still known."""
    segments: set[Path] = field(default_factory=set)
    report: StopReport | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def pid(self) -> int:
        """The leader's id, which is also its session's."""
        return self.popen.pid

    def members(self) -> list[Proc]:
        """Every live process of the tree, zombies aside. What else this process has started with the same tag, such as the
        clients that load an engine, is not of the tree.
        """
        found = proc.without_children(proc.members(self.tag, self.identity, self.seen), but=self.pid)
        self.seen.update(one.identity for one in found)
        return found

    def returncode(self) -> int | None:
        """The leader's exit status, None while it runs."""
        return self.popen.poll()

    def alive(self) -> bool:
        """Whether the leader runs."""
        return self.popen.poll() is None

    def follow(self, poll_s: float = 0.1) -> Iterator[str]:
        """Log lines as they come; ends after the last line of a dead leader. Abandon it at any time."""
        reader = LogReader(self.log)
        while self.alive():
            yield from reader.lines()
            time.sleep(poll_s)
        yield from reader.lines(final=True)

    def note_segments(self) -> None:
        """Remember the shared memory that nobody can find once the tree has died by itself."""
        self.segments |= nameless_segments(one.pid for one in self.members())

    def stop(self, grace_s: float = 10.0) -> StopReport:
        """End the whole tree and await it: TERM to the leader, TERM to what it leaves, KILL to what ignores both. Idempotent."""
        with self._lock:
            if self.report is None or self.members():
                before = time.monotonic()
                was_running = self.alive() if self.report is None else self.report.was_running
                killed, survivors = end(self.members, self.pid, grace_s, reap_child=self.popen.poll)
                if not survivors:
                    remove(self.segments)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.popen.wait(0.0 if survivors else 5.0)
                self.report = StopReport(time.monotonic() - before, self.popen.poll(), killed, survivors, was_running)
            return self.report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    tag: str,
    cpus: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
) -> Process:
    """Start a command in a session of its own, its output going straight into `log`; `stdin` is a descriptor of ours.

    Its environment is `environment(env, tag)`.
    Raises MissingPrerequisite when the program does not exist, AutotuneError when it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, _affinity(cpus):
        popen = _popen(argv, env=environment(env, tag), cwd=cwd, stdin=stdin, stdout=output, stderr=subprocess.STDOUT)
    seen = proc.look(popen.pid)
    assert seen is not None, "an unreaped child is in the process table"
    return Process(popen, tag, log, seen.identity)


Piped = subprocess.Popen[bytes]
"""A helper process of this one that is talked to through its standard input and output."""


def piped(argv: Sequence[str], env: Mapping[str, str], log: Path | None = None) -> Piped:
    """Start a helper of autotune's own that answers through pipes and ends by itself when its input does.

    `log` takes its standard error; None is this process's own.
    """
    with log.open("ab") if log is not None else contextlib.nullcontext() as errors:
        return subprocess.Popen(list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=dict(env))


def run(
    argv: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None, *, stdin: str = "", cwd: Path | None = None
) -> Completed:
    """Run a short helper command to its end and return its output; its whole tree is ended after `timeout_s`.

    Raises MissingPrerequisite when the program does not exist. A non-zero exit status is for the caller to judge.
    """
    tag = make_tag(Path(tempfile.gettempdir()), "run", "helper")
    before = time.monotonic()
    popen = _popen(
        argv,
        env={**inherited_environment(), **(env or {}), **_marks(tag)},
        cwd=cwd or Path.cwd(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    leader = proc.look(popen.pid)
    identity = leader.identity if leader else None
    try:
        out, err = popen.communicate(stdin.encode(), timeout=timeout_s)
        timed_out = False
    except subprocess.TimeoutExpired:
        end(lambda: proc.members(tag, identity), popen.pid, 1.0, reap_child=popen.poll)
        out, err = popen.communicate()
        timed_out = True
    except BaseException:
        end(lambda: proc.members(tag, identity), popen.pid, 0.0, reap_child=popen.poll)
        raise
    seconds = time.monotonic() - before
    return Completed(popen.returncode, out.decode(errors="replace"), err.decode(errors="replace"), seconds, timed_out)


def environment(env: Mapping[str, str], tag: str) -> dict[str, str]:
    """What a started process sees: the inherited environment without credentials and leftovers of other launchers, then `env`,
    then the tag."""
    return {**inherited_environment(), **env, **_marks(tag)}


def inherited_environment() -> dict[str, str]:
    """This process's environment without credentials (but the model hub's), its own variables and other launchers' leftovers."""
    return {name: value for name, value in os.environ.items() if _passes_on(name)}


def _passes_on(name: str) -> bool:
    if name in _KEPT_SECRETS:
        return True
    return not (name in _DROPPED_NAMES or name.startswith(_DROPPED) or is_secret_name(name))


def _marks(tag: str) -> dict[str, str]:
    # A process that renames itself overwrites the memory behind /proc/PID/environ unless SPT_NOENV is set (setproctitle).
    return {TAG_VARIABLE: tag, "SPT_NOENV": "1"}


def _popen(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, **streams: object) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(argv), env=dict(env), cwd=cwd, start_new_session=True, close_fds=True, **streams)  # type: ignore[call-overload,no-any-return]
    except FileNotFoundError as error:
        raise MissingPrerequisite(f"Cannot start {argv[0]!r}: {error.filename!r} does not exist.") from error
    except (OSError, ValueError) as error:
        raise AutotuneError(f"Cannot start {argv[0]!r}: {error}.") from error


@contextlib.contextmanager
def _affinity(cpus: Sequence[int]) -> Iterator[None]:
    """Pins the calling thread, whose cores a child inherits, for as long as the child takes to be born."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # none of these cores may be used by anybody here
        os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
