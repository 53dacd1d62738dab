"""The connections of a client process under one epoll: hands over complete answers and broken ones, nothing in between.

A plain epoll loop, because every layer between the socket and the time stamp is latency that would be charged to the engine.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from time import perf_counter
from typing import Any

from autotune.workloads._load.exchange import Answer, Broken, Connection

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Wire:
    """`on_answer(token, answer)` and `on_broken(token, answer, reason)` are called from `wait`, once for every `ask`."""

    def __init__(
        self,
        address: tuple[str, int],
        on_answer: Callable[[Any, Answer], None],
        on_broken: Callable[[Any, Answer | None, str], None],
    ) -> None:
        self._address, self._on_answer, self._on_broken = address, on_answer, on_broken
        self._epoll = select.epoll()
        self._epoll.register(0, READ)
        self._idle: list[Connection] = []
        self._open: dict[int, tuple[Connection, Any, bytes, bool]] = {}
        self._fd_of: dict[Any, int] = {}

    def open(self, count: int) -> None:
        """Open connections ahead of their use."""
        self._idle += [self._connect() for _ in range(count)]

    def ask(self, token: Any, request: bytes, collect: bool) -> None:
        """Send a request at once, on an idle connection if there is one."""
        connection = self._idle.pop() if self._idle else self._connect()
        self._open[connection.fd] = (connection, token, request, collect)
        self._fd_of[token] = connection.fd
        try:
            if not connection.ask(request, collect):
                self._epoll.modify(connection.fd, READ | WRITE)
        except Broken as error:
            self._broken(connection.fd, str(error))

    def cut(self, token: Any) -> Answer | None:
        """Give up a request; returns what has come of its answer."""
        connection, *_ = self._release(self._fd_of[token])
        self._drop(connection)
        return connection.answer

    def first(self, token: Any) -> float | None:
        """When the first generated content of a request under way came; None when none has."""
        answer = self._open[self._fd_of[token]][0].answer
        return answer.times[0] if answer is not None and answer.times else None

    def wait(self, seconds: float) -> bool:
        """Handle what happens within `seconds`, returning after the first batch; True when standard input has something."""
        if seconds > 0:
            # epoll's own time-out counts milliseconds; select on its descriptor counts microseconds.
            select.select([self._epoll], [], [], seconds)
        orders = False
        fd: int
        for fd, events in self._epoll.poll(0):
            if fd == 0:
                orders = True
            elif fd in self._open:
                self._on_event(fd, events)
            else:
                self._on_idle_event(fd)
        return orders

    def close(self) -> None:
        """Drop every connection."""
        for connection, *_ in self._open.values():
            connection.close()
        for connection in self._idle:
            connection.close()
        self._epoll.close()

    def _connect(self) -> Connection:
        connection = Connection(self._address)
        self._epoll.register(connection.fd, READ)
        return connection

    def _on_event(self, fd: int, events: int) -> None:
        connection = self._open[fd][0]
        try:
            if events & WRITE and connection.flush():
                self._epoll.modify(fd, READ)
            if events & ~WRITE and connection.read(perf_counter()):
                self._complete(fd)
        except Broken as error:
            self._broken(fd, str(error))

    def _on_idle_event(self, fd: int) -> None:
        """The server closed an idle connection, or speaks out of turn."""
        for connection in self._idle:
            if connection.fd == fd:
                self._idle.remove(connection)
                self._drop(connection)
                return

    def _complete(self, fd: int) -> None:
        connection, token, *_ = self._release(fd)
        answer = connection.answer
        assert answer is not None
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._drop(connection)
        self._on_answer(token, answer)

    def _broken(self, fd: int, reason: str) -> None:
        connection, token, request, collect = self._release(fd)
        self._drop(connection)
        if connection.stale:
            # The server had closed the idle connection; it never saw the request.
            self.ask(token, request, collect)
        else:
            self._on_broken(token, connection.answer, reason)

    def _release(self, fd: int) -> tuple[Connection, Any, bytes, bool]:
        entry = self._open.pop(fd)
        del self._fd_of[entry[1]]
        return entry

    def _drop(self, connection: Connection) -> None:
        self._epoll.unregister(connection.fd)
        connection.close()
