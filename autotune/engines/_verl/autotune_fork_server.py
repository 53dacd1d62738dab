"""Starts verl's driver, and beside it a server that the workers of Ray are forked from instead of importing everything again.

    AUTOTUNE_FORK='{"socket": PATH, "shared": [...], "modules": [...], "expected": {...}}' \
        python autotune_fork_server.py -m verl.trainer.main_ppo ...

This process imports the modules that driver and workers share, forks the server, and becomes the driver, as if it had been
started with `-m`. The server goes on to import the workers' other modules, with the variables that workers are expected to
have, while the driver starts Ray. Ray starts its workers through
`autotune_fork_client.py`, which asks the server for a child and hands over what the process had that Ray has started: its
arguments, environment, folder, streams, signals, limits and priority. The child runs Ray's own script with them.

What was read at import cannot be changed afterwards. Every variable that Python code looks up while it imports is noted; a
worker that is to have another value of one of those, or of a variable that is not known to be read late, is not forked but
starts with imports of its own. So does every one when CUDA was initialised here, or a thread runs here that a child would
miss. Whatever goes wrong, a worker starts plainly, and the trial goes on.

Runs in verl's own environment and imports nothing of autotune but its neighbours here and of `_ahead`, which know no more than
this.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import runpy
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import autotune_fork_child
from autotune_fork_imports import CULPRITS, import_all, waiting

PR_SET_PDEATHSIG = 1
LATE = ("RAY_", "NCCL_", "VLLM_", "HCCL_", "HSA_", "VERL_", "WG_", "TRANSFER_QUEUE_")
"""How names of variables begin that Ray and verl give their workers, and that native code reads when it needs them."""
LATE_NAMES = frozenset(
    {"TOKENIZERS_PARALLELISM", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)
OF_A_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "PS1", "PS2"})
"""Ray starts workers through a shell, which keeps these for itself, or drops them where it talks to nobody: an activated virtual
environment exports PS1."""
NATIVE = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": str(os.getpid())}
"""What Ray's native code reads once, when it is loaded, and workers alone use: the job, which is the first of its cluster, and
the process without which a worker ends. That is the raylet's; the driver's, which is this one's, ends with it."""
HARMLESS_THREADS = re.compile(r"jemalloc_bg_thd|cuda[0-9a-f]{11}")
"""Threads by the kernel's name that a library starts again, or does without, in a forked child. The second is the CUDA driver's
(580), which has it before CUDA is initialised; vLLM's engine, forked from a process like that, serves on an H200."""
EARLY_S = 90.0
"""A child that fails sooner after its start may have failed for being forked."""
ENDED_BY_OTHERS = (0, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGINT)
PATIENCE_S = 10.0
"""How long a client may take to say what it wants; a client says it at once."""


@dataclass
class Client:
    """One that waits for its child; before that `pid` is 0."""

    connection: socket.socket
    pid: int = 0
    pidfd: int = -1
    began: float = field(default_factory=time.monotonic)


def main() -> None:
    entry, arguments = sys.argv[2], sys.argv[3:]
    asked = json.loads(os.environ.pop("AUTOTUNE_FORK"))
    origin = autotune_fork_child.Origin(dict(os.environ), str(Path.cwd()))
    # As `-m` would have it.
    sys.path[0] = origin.folder
    sys.argv = ["-m"]
    for name, value in NATIVE.items():
        os.putenv(name, value)
    import_all(asked["shared"])
    order, reason = None, obstacle()
    if reason is None:
        with contextlib.suppress(OSError):
            order = beside(asked, origin)
    else:
        complain("Every worker", reason)
    if order is None:
        for name in NATIVE:
            os.unsetenv(name)
        sys.argv = ["-m", *arguments]
        runpy.run_module(entry, run_name="__main__", alter_sys=True)
    else:
        autotune_fork_child.become(order)
        runpy.run_path(sys.argv[0], run_name="__main__")


def alike() -> bool:
    """Whether forked processes draw the same from Ray's native code; two that are forked to try it tell."""
    ray: Any = sys.modules.get("ray._raylet")
    if ray is None:
        return False
    ours, theirs = os.pipe()
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                os.write(theirs, ray.NodeID.from_random().binary())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as drawn:
        return bool(drawn.read(ray.NodeID.size()) == drawn.read(ray.NodeID.size()))


def obstacle() -> str | None:
    """Why nothing can be forked from this process; None when it can."""
    if waiting.cuda_touched():
        return f"CUDA was initialised while {' and '.join(CULPRITS) or 'something'} was imported"
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    threads = {(task / "comm").read_text().strip() for task in tasks}
    missed = sorted(name for name in threads if not HARMLESS_THREADS.fullmatch(name))
    return f"a thread named {missed[0]} runs, which a forked process would miss" if missed else None


def complain(who: str, reason: str) -> None:
    print(f"{who} starts with imports of its own: {reason}.", file=sys.stderr, flush=True)


def beside(asked: Mapping[str, Any], origin: autotune_fork_child.Origin) -> dict[str, Any] | None:
    """Fork the server; returns None in the driver and, in a child of the server, what that child is to become."""
    listener = listening(asked["socket"])
    driver = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        listener.close()
        return None
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != driver:
            os._exit(0)
        prepare(asked, origin)
        return Server(listener, origin).serve()
    except BaseException as error:
        # Nothing may go on from here as a second driver; without a server workers start plainly.
        complain("Every further worker", f"the server failed with {error!r}")
        os._exit(1)


def listening(place: str) -> socket.socket:
    """A socket that only this user may connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Left by a run of the same trial with another seed, which is over.
    Path(place).unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(place)
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def prepare(asked: Mapping[str, Any], origin: autotune_fork_child.Origin) -> None:
    """Import what workers need, with the variables that they are expected to have."""
    for name, value in asked["expected"].items():
        # What was looked up already was found without it; a worker that has it is refused then.
        if name not in waiting.Noting.names and name not in os.environ:
            os.environ[name] = origin.environment[name] = value
    import_all(asked["modules"])
    gc.collect()
    gc.freeze()


class Server:
    """Forks children until its driver dies."""

    def __init__(self, listener: socket.socket, origin: autotune_fork_child.Origin) -> None:
        self.listener, self.origin = listener, origin
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.said: set[str] = set()
        self.failed = "Ray has drawn random numbers while importing, which every worker would draw again" if alike() else None

    def serve(self) -> dict[str, Any]:
        """Returns only in a child: what it is to become."""
        while True:
            for key, _ in self.selector.select():
                client = key.data
                if client is None:
                    order = self.accept()
                    if order is not None:
                        return order
                elif key.fd == client.pidfd:
                    self.report(client)
                elif client.connection.fileno() >= 0:
                    self.abandoned(client)

    def accept(self) -> dict[str, Any] | None:
        """Serve one new client; in the child, what it is to become."""
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE_S)
        try:
            connection.sendall(b"?")
            order, streams = receive(connection)
        except (OSError, ValueError):
            # It no longer waits, and starts by itself.
            connection.close()
            return None
        reason = self.failed or obstacle() or self.differs(order)
        if reason is None:
            return self.fork(connection, order, streams)
        if reason not in self.said:
            self.said.add(reason)
            complain("A worker", reason)
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps({"refused": reason}).encode() + b"\n")
        for stream in streams:
            os.close(stream)
        connection.close()
        return None

    def differs(self, order: Mapping[str, Any]) -> str | None:
        """Why a worker with this environment cannot go on from what was imported here; None when it can."""
        script = order["argv"][0] if order["argv"] else ""
        if not script.endswith(".py"):
            return f"it is not a script ({script!r})"
        asked, began, now = order["env"], self.origin.environment, os.environ
        if asked.get("RAY_JOB_ID", NATIVE["RAY_JOB_ID"]) != NATIVE["RAY_JOB_ID"]:
            return "it is of a second job"
        for name in sorted({*asked, *began, *now} - OF_A_SHELL):
            if asked.get(name) in (now.get(name), began.get(name)):
                continue
            if name in waiting.Noting.names:
                return f"{name} was looked up or set while importing, and a worker has another value"
            if name not in LATE_NAMES and not name.startswith(LATE):
                return f"{name} is not what was imported with"
        return None

    def fork(self, connection: socket.socket, order: dict[str, Any], streams: list[int]) -> dict[str, Any] | None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self.leave()
            said = waiting.Noting.names
            return {**order, "streams": streams, "connection": connection, "origin": self.origin, "looked_up": said}
        for stream in streams:
            os.close(stream)
        client = Client(connection, pid, os.pidfd_open(pid))
        self.selector.register(connection, selectors.EVENT_READ, client)
        self.selector.register(client.pidfd, selectors.EVENT_READ, client)
        return None

    def leave(self) -> None:
        """In a child: let go of what is the server's and other clients'. Nothing is unregistered: the selector is shared."""
        for key in list(self.selector.get_map().values()):
            if key.data is not None and key.fd == key.data.pidfd:
                os.close(key.fd)
            elif key.data is not None:
                key.data.connection.close()
        self.listener.close()
        self.selector.close()

    def report(self, client: Client) -> None:
        """A child has ended: tell whoever waits for it."""
        _, status = os.waitpid(client.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in ENDED_BY_OTHERS and time.monotonic() - client.began < EARLY_S:
            self.failed = f"a forked one ended with status {code} soon after its start"
        self.selector.unregister(client.pidfd)
        os.close(client.pidfd)
        client.pid = 0
        if client.connection.fileno() >= 0:
            with contextlib.suppress(OSError):
                client.connection.sendall(json.dumps({"status": status}).encode() + b"\n")
            self.drop(client)

    def abandoned(self, client: Client) -> None:
        """A client that waits says nothing more: it was killed, and its child goes with it."""
        self.drop(client)
        if client.pid:
            os.kill(client.pid, signal.SIGKILL)

    def drop(self, client: Client) -> None:
        self.selector.unregister(client.connection)
        client.connection.close()


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's order and its three standard streams."""
    head, streams, _, _ = socket.recv_fds(connection, 4, 3)
    try:
        if len(head) != 4 or len(streams) != 3:
            raise ValueError("nothing was asked")
        (length,) = struct.unpack("!I", head)
        text = b""
        while len(text) < length:
            part = connection.recv(length - len(text))
            if not part:
                raise ValueError("cut short")
            text += part
        order: dict[str, Any] = json.loads(text)
    except BaseException:
        for stream in streams:
            os.close(stream)
        raise
    return order, streams


if __name__ == "__main__":
    main()
