"""An interpreter that imports an engine ahead of its trial, so that nobody waits for Python when the trial begins.

The process in which a trial will run holds the interpreter that the trial will use, as its child, by the trial's tag:

    with standby.held(ahead, tag=tag, ...):         started; it imports, out of everyone's way
        ...
        standby.start(argv, tag=...)                what `process.start` does, in that interpreter if it fits

`engines/_ahead/waiting.py` is what runs in it, and `imported.py` beside it judges whether the launch may go on there. If it may
not, the same process starts the launch from its beginning; if it is gone, another one is started. Either way the launch is the
same.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autotune import process
from autotune.errors import AutotuneError
from autotune.process import Process
from autotune.trial import Value

LOG = "standby.log"
_WAITING = Path(__file__).parent / "engines" / "_ahead" / "waiting.py"
_held: dict[str, Standby] = {}


@dataclass(frozen=True)
class Spawned:
    """Processes that a launch starts with `multiprocessing`'s spawn, for which interpreters import ahead as well."""

    count: int
    """How many; any more are spawned as usual."""
    modules: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the launch sets before it spawns and that are looked up while importing."""
    late: tuple[str, ...] = ()
    """How names of other variables begin that the launch sets, as for the launch itself."""


@dataclass(frozen=True)
class Ahead:
    """What an interpreter can do for a launch before it is known."""

    head: tuple[str, ...]
    """How every launch's command begins: the interpreter with its flags, then a script, or `-m` and a package."""
    modules: tuple[str, ...]
    """What to import; a module that is not there is passed over."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that every launch gets."""
    late: tuple[str, ...] = ()
    """How names of variables begin that only the engine's Python code looks at, so that it is known when it does."""
    spawned: Spawned | None = None
    """Processes that the launch spawns; None when it may fork, which a process that has initialised CUDA cannot."""
    insist: bool = False
    """Also where it has no cores of its own to import on."""

    def command(self) -> tuple[str, ...]:
        """What runs until the launch is known."""
        entry = self.head[-2:] if self.head[-2] == "-m" else self.head[-1:]
        return (*self.head[: -len(entry)], str(_WAITING), *entry, "--", *self.modules)


@dataclass
class Standby:
    """An interpreter that waits."""

    ahead: Ahead
    process: Process
    orders: socket.socket
    told: str | None = None
    """Why the launch does not run in it; None as long as nothing speaks against it."""
    used: bool = False
    said: bytes = b""

    def imported(self, timeout_s: float = 0.0) -> bool:
        """Wait until it has imported everything; False when it has not within the time, or is gone."""
        return self._line(timeout_s) is not None

    def fits(self, argv: Sequence[str]) -> bool:
        """Whether the command begins as this interpreter does, and it still waits."""
        head = self.ahead.head
        if tuple(argv[: len(head)]) != head:
            self.told = "the launch is another program's"
        elif not self.process.alive():
            self.told = f"the interpreter that was to take it had ended with status {self.process.returncode()}"
        return self.told is None

    def take(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, tag: str, cpus: Sequence[int]) -> bool:
        """Hand the launch over; False when nobody takes it."""
        cores = sorted(cpus or os.sched_getaffinity(0))
        order = {
            "argv": list(argv),
            "arguments": list(argv[len(self.ahead.head) :]),
            "env": process.environment(env, tag),
            "cwd": str(cwd),
            "log": str(log),
            "cpus": cores,
            "late": self.ahead.late,
            "forks": self.ahead.spawned is None,
        }
        _promote(self.process.pid, cores)
        self.orders.settimeout(5.0)
        try:
            self.orders.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            self.told = f"the interpreter that was to take it did not listen ({error.strerror})"
            return False
        self.process.log, self.used = log, True
        return True

    def close(self) -> None:
        """End an interpreter that nothing was launched in."""
        self.orders.close()
        if not self.used:
            self.process.stop(0.0)

    def facts(self) -> dict[str, Value]:
        """`standby`: whether the launch went on in the waiting interpreter; `standby_refused`: why it did not."""
        if self.used and self.told is None:
            self.told = self._answer()
        return {"standby": True} if self.told is None else {"standby": False, "standby_refused": self.told}

    def _answer(self) -> str | None:
        """What it said to the launch, which it says before it goes on."""
        text = self._line(5.0, number=2)
        answer: str | None = json.loads(text) if text is not None else "the interpreter that was to take it ended before it said so"
        return answer

    def _line(self, timeout_s: float, number: int = 1) -> bytes | None:
        """One of the lines that it says, None when that has not come within the time."""
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            while self.said.count(b"\n") < number:
                self.orders.settimeout(max(0.01, deadline - time.monotonic()))
                part = self.orders.recv(1 << 16)
                if not part:
                    break
                self.said += part
        lines = self.said.split(b"\n")
        return lines[number - 1] if len(lines) > number else None


@contextlib.contextmanager
def held(
    ahead: Ahead, *, env: Mapping[str, str], scratch: Path, tag: str, cpus: Sequence[int], threads: int
) -> Iterator[Standby | None]:
    """Have an interpreter waiting for the launch with this tag, and give it; on leaving, one that was not used is ended.

    `cpus` are the cores it imports on, `threads` the number of cores that the launch will have. None is given when
    none can be started.
    """
    ours, theirs = socket.socketpair()
    own = {"AUTOTUNE_PARENT": str(os.getpid()), "AUTOTUNE_THREADS": str(threads)}
    if ahead.spawned is not None:
        own["AUTOTUNE_SPAWNS"] = json.dumps(asdict(ahead.spawned))
    scratch.mkdir(parents=True, exist_ok=True)
    with theirs, contextlib.suppress(AutotuneError):
        started = process.start(
            ahead.command(),
            env={**env, **ahead.env, **own},
            cwd=scratch,
            log=scratch / LOG,
            tag=tag,
            cpus=cpus,
            stdin=theirs.fileno(),
        )
        _held[tag] = Standby(ahead, started, ours)
    try:
        yield _held.get(tag)
    finally:
        ours.close()
        if (left := _held.pop(tag, None)) is not None:
            left.close()


def start(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, tag: str, cpus: Sequence[int]
) -> tuple[Process, Standby | None]:
    """As `process.start`, in the interpreter that waits for this tag where there is one and it fits.

    Returns that interpreter too, used or not; None when none was waiting. Raises what `process.start` raises.
    """
    waiting = _held.get(tag)
    if waiting is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        if waiting.fits(argv) and waiting.take(argv, env=env, cwd=cwd, log=log, tag=tag, cpus=cpus):
            return waiting.process, waiting
        waiting.close()
    return process.start(argv, env=env, cwd=cwd, log=log, tag=tag, cpus=cpus), waiting


def _promote(pid: int, cpus: Sequence[int]) -> None:
    """Let one that still imports do so as the launch would: it is waited for now."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            os.sched_setaffinity(int(name), cpus)
            os.sched_setscheduler(int(name), os.SCHED_OTHER, os.sched_param(0))
