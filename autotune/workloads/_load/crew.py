"""The client processes as seen from the driver: started once a run, given orders, ended with it."""

from __future__ import annotations

import os
import selectors
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import orjson

import autotune
from autotune import process
from autotune.trial import FailureKind, Phase, TrialFailed

WORKER = "autotune.workloads._load.worker"
ANSWER_S = 60.0
"""A client process that owes an answer for this long is broken."""

Message = tuple[int, Mapping[str, Any]]


class Crew:
    """A context manager; leaving it ends every client process."""

    def __init__(self, clients: int, tag: str, log: Path | None = None) -> None:
        """`log` takes what the processes write to standard error; None is this process's own."""
        self.clients = clients
        self._log = log
        self._tag = tag
        self._workers: list[process.Piped] = []
        self._rest: list[bytes] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        # The package must be found whichever folder the driver was started from.
        root = str(Path(autotune.__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        env = {**os.environ, "AUTOTUNE_TAG": self._tag, "PYTHONPATH": path}
        command = [sys.executable, "-m", WORKER, str(os.getpid())]
        try:
            for number in range(self.clients):
                worker = process.piped(command, env, self._log)
                self._workers.append(worker)
                self._rest.append(b"")
                assert worker.stdout is not None
                self._selector.register(worker.stdout, selectors.EVENT_READ, number)
            self.collect("ready")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def order(self, orders: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Send each worker its order, or all the same one."""
        each = [orders] * self.clients if isinstance(orders, Mapping) else orders
        for worker, order in zip(self._workers, each, strict=True):
            assert worker.stdin is not None
            try:
                worker.stdin.write(orjson.dumps(order) + b"\n")
                worker.stdin.flush()
            except BrokenPipeError:
                raise self._broken("A load client process ended while it was needed.") from None

    def poll(self, seconds: float) -> list[Message]:
        """The messages that arrive within some seconds; returns with the first ones."""
        found: list[Message] = []
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 1 << 20)
            if not data:
                raise self._broken("A load client process ended while it was needed.")
            *lines, self._rest[key.data] = (self._rest[key.data] + data).split(b"\n")
            found += [(key.data, orjson.loads(line)) for line in lines]
        return found

    def collect(self, name: str) -> list[Mapping[str, Any]]:
        """Wait until each worker has said a message with a field; other messages are dropped."""
        answers: dict[int, Mapping[str, Any]] = {}
        until = perf_counter() + ANSWER_S
        while len(answers) < self.clients:
            left = until - perf_counter()
            if left <= 0:
                raise self._broken(f"A load client process did not answer within {ANSWER_S:.0f} s.")
            answers.update({worker: message for worker, message in self.poll(left) if name in message})
        return [answers[number] for number in range(self.clients)]

    def _broken(self, reason: str) -> TrialFailed:
        said = self._log.read_text(errors="replace").splitlines()[-3:] if self._log is not None and self._log.is_file() else []
        return TrialFailed(FailureKind.MACHINE_FAULT, Phase.MEASURE, reason, *said)

    def close(self) -> None:
        """End every client process. They hold nothing that needs a farewell."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    _close(stream)
        self._workers = []
        self._selector.close()


def _close(stream: Any) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        # What the buffer held was for a process that is gone.
        return
