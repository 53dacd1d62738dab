"""Starts verl's driver, and beside it a server that the workers of Ray are forked from instead of importing everything again.

    AUTOTUNE_FORK='{"socket": PATH, "shared": [...], "modules": [...], "expected": {...}}' \
        python autotune_fork_server.py -m verl.trainer.main_ppo ...

This process imports the modules that driver and workers share, forks the server, and becomes the driver, as if it had been
started with `-m`. The server goes on to import the workers' other modules, with the variables that workers are expected to
have, while the driver starts Ray. Ray starts its workers through
`autotune_fork_client.py`, which asks the server for a child and hands over what the process had that Ray has started: its
arguments, environment, folder, streams, signals, limits and priority. The child runs Ray's own script with them.

A worker that could not go on from here as if it had imported everything itself is not forked: `autotune_fork_obstacles.py`.
Whatever goes wrong, a worker starts plainly, and the trial goes on.

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
from autotune_fork_imports import import_all, imported
from autotune_fork_obstacles import NATIVE, alike, differs, obstacle

PR_SET_PDEATHSIG = 1
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
        if name not in imported.Noting.names and name not in os.environ:
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
        reason = self.failed or obstacle() or differs(order, self.origin.environment)
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

    def fork(self, connection: socket.socket, order: dict[str, Any], streams: list[int]) -> dict[str, Any] | None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self.leave()
            said = imported.Noting.names
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
