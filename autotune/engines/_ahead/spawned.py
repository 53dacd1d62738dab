"""Interpreters that import ahead for the processes that a launch spawns. Imports nothing of autotune but its neighbours.

    python spawned.py SCRIPT -- LATE ... -- MODULE ...      (or `-m PACKAGE` in the place of SCRIPT)

A process that Python's `multiprocessing` spawns begins with an empty interpreter, which imports again what its parent has
imported. Here that has been done before the launch is known: `waiting.py` starts such interpreters beside itself, and once it
has become the launch it gives them to `multiprocessing` in the place of new ones. Such a process is as fresh as a spawned one:
it shares no memory, threads or CUDA state with its parent, so engines that cannot fork can have it.

An interpreter that waits keeps the low descriptors occupied, so that those which its parent wants to hand over keep their
numbers. As with a launch, every variable that Python code looked up while importing is noted: where the process is to have
another value of one of those, or of one whose name does not begin with one of LATE, it is spawned plainly.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker, util
from pathlib import Path
from typing import Any

# Beside this file, also where PYTHONSAFEPATH keeps a script's folder out of the path.
sys.path.insert(0, str(Path(__file__).parent))
import imported
import inherited

# The names are free again for whoever else has modules of them.
del sys.path[0], sys.modules["imported"], sys.modules["inherited"]

RESERVED = 256
"""Descriptors below this one are kept free for what a parent hands over."""
PATIENCE_S = 120.0
"""How long one that still imports may take to answer; it began before the launch."""
SAME = {"CUDA_MODULE_LOADING"}
"""Whatever this says, and when it says nothing, CUDA 12.2 and later load kernels when they are first used, but for EAGER, which
nobody sets on the way. PyTorch sets it when it initialises CUDA, and SGLang before it spawns."""
PASSED = 250
"""A socket hands over no more descriptors at once (SCM_MAX_FD is 253)."""


@dataclass
class Child:
    """One that waits."""

    pid: int
    orders: socket.socket

    def take(self, path: str, argv: Sequence[str], passed: Sequence[int]) -> bool:
        """Have it go on as the process that this command would have started; False when it cannot, and it is ended then."""
        reason: str | None = "it was interrupted"
        try:
            reason = self.ask(path, argv, sorted({0, 1, 2, *passed}))
        finally:
            if reason is not None:
                self.end()
        if reason is not None:
            print(f"A process starts with imports of its own: {reason}.", flush=True)
        return reason is None

    def ask(self, path: str, argv: Sequence[str], numbers: Sequence[int]) -> str | None:
        if path != sys.executable:
            return f"{path} is to start it"
        if len(numbers) > PASSED:
            return "it hands over too many descriptors"
        order = json.dumps(
            {**inherited.state(), "ignored": sorted(ignored()), "argv": list(map(os.fsdecode, argv)), "numbers": numbers}
        ).encode()
        self.orders.settimeout(PATIENCE_S)
        try:
            with self.orders, self.orders.makefile("rb") as answers:
                socket.send_fds(self.orders, [b"!"], list(numbers))
                self.orders.sendall(order + b"\n")
                line = answers.readline()
        except OSError as error:
            return f"the interpreter that was to take it did not answer ({error})"
        reason: str | None = json.loads(line) if line else "the interpreter that was to take it had ended"
        return reason

    def end(self) -> None:
        self.orders.close()
        # Where its end is not for us to await, nothing may be sent to its number, which may be another's by now.
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


@dataclass
class Brood:
    """The interpreters that wait beside one that waits for a launch."""

    children: list[Child] = field(default_factory=list)

    def start(self, count: int, entry: Sequence[str], modules: Sequence[str], late: Sequence[str], env: Mapping[str, str]) -> None:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        argv = [sys.executable, *flags, __file__, *entry, "--", *late, "--", *modules]
        environment = {**os.environ, **env, "AUTOTUNE_PARENT": str(os.getpid())}
        for _ in range(count):
            ours, theirs = socket.socketpair()
            with theirs:
                action = (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)
                self.children.append(Child(os.posix_spawn(sys.executable, argv, environment, file_actions=[action]), ours))

    def become_normal(self, cpus: Iterable[int], idle: bool) -> None:
        for child in self.children:
            imported.take_cores(child.pid, cpus, idle)

    def serve(self) -> None:
        """From here on `multiprocessing` is given one of them where it would start an interpreter.

        One that such a process cannot have is ended all the same: kept, it would be measured as memory of the launch.
        """
        plain, own = util.spawnv_passfds, os.getpid()

        def spawn(path: Any, argv: Any, passed: Any) -> int:
            # They are no children of a process that was forked from this one.
            child = self.next() if "--multiprocessing-fork" in argv and os.getpid() == own else None
            if child is not None and child.take(os.fsdecode(path), argv, passed):
                return child.pid
            return plain(path, argv, passed)

        util.spawnv_passfds = spawn  # type: ignore[assignment]

    def next(self) -> Child | None:
        # Another thread may take the last one after any question.
        with contextlib.suppress(IndexError):
            return self.children.pop()
        return None

    def end(self) -> None:
        while self.children:
            self.children.pop().end()


def ignored() -> set[int]:
    """Signals that this process ignores, but for those that Python itself ignores in each."""
    found = {int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN}
    return found - {signal.SIGPIPE, signal.SIGXFSZ}


def main() -> None:
    first, last = (index for index, word in enumerate(sys.argv) if word == "--")
    entry, late, modules = sys.argv[1:first], sys.argv[first + 1 : last], sys.argv[last + 1 :]
    imported.end_with_parent()
    orders, born_ignoring = reserve(), ignored()
    threads = os.environ.pop("AUTOTUNE_THREADS", None)
    before = dict(os.environ)
    imported.import_all(entry, modules, threads)
    imported.end_if_it_takes_memory()
    passed, order = await_order(orders)
    asked = order["env"]
    # What its parent has set while importing, this one has set too.
    differing = {name for name in {*before, *asked} if asked.get(name) not in (before.get(name), os.environ.get(name))}
    reason = occupied(order["numbers"], passed) or imported.obstacle(differing - SAME, late, forks=False)
    imported.answer(orders, reason)
    if reason is not None:
        os._exit(0)
    imported.outlive_parent()
    become(order, dict(zip(order["numbers"], passed, strict=True)), differing)
    ignore(set(order["ignored"]), born_ignoring)
    imported.widen(os.environ.get(imported.THREADS, threads))
    code = order["argv"][order["argv"].index("-c") + 1]
    sys.argv = ["-c", *order["argv"][order["argv"].index(code) + 1 :]]
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(code, sys.modules["__main__"].__dict__)


def reserve() -> socket.socket:
    """Take the orders out of the way, and keep the low descriptors from whatever opens some while it is imported."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * RESERVED:
        print("A process may open too few files here for anything to be imported ahead for spawned ones.", flush=True)
        os._exit(1)
    orders = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, RESERVED))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number in set(range(3, RESERVED)) - {nothing}:
        os.dup2(nothing, number, inheritable=False)
    return orders


def await_order(orders: socket.socket) -> tuple[list[int], dict[str, Any]]:
    text, passed, _, _ = socket.recv_fds(orders, 1, PASSED)
    if not text:
        os._exit(0)
    with orders.makefile("rb") as lines:
        order: dict[str, Any] = json.loads(lines.readline())
    return passed, order


def occupied(numbers: Sequence[int], passed: Sequence[int]) -> str | None:
    """Why descriptors of these numbers cannot be handed over to here; None when they can."""
    if len(passed) != len(numbers):
        return "the interpreter that was to take it may open too few files"
    high = [number for number in numbers if number >= RESERVED]
    if high:
        return f"it is handed the descriptor {high[0]}, which may be in use"
    tracks = resource_tracker._resource_tracker._fd is not None  # type: ignore[attr-defined]
    return "it has made shared memory or semaphores while it imported" if tracks else None


def become(order: Mapping[str, Any], passed: Mapping[int, int], differing: Iterable[str]) -> None:
    """Take over all that a spawned process would have from its parent."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number in range(RESERVED):
        if number in passed:
            os.dup2(passed[number], number)
            os.close(passed[number])
        elif number > 2:
            with contextlib.suppress(OSError):
                os.close(number)
    imported.take_environment(order["env"], differing)
    inherited.take_surroundings(order)
    # A thread that began while its parent gave them normal priority may have been passed over.
    imported.take_cores(os.getpid(), order["cpus"], idle=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])


def ignore(asked: Collection[int], born: Collection[int]) -> None:
    """Ignore the signals that its parent ignores, and not those that were ignored when it began. What importing has set stays."""
    for number in signal.valid_signals():
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        if number in born and number not in asked and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
        elif number in asked and signal.getsignal(number) == usual:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
