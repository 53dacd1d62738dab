"""One connection to the server, and the streamed answer it is reading. HTTP/1.1 and server-sent events, nothing more.

Every byte block is stamped once when it is read; an event costs one line split and one JSON parse. Measured against
aiohttp on the same stream this takes a fifth of the CPU (benchmarks/load_client.py).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

import orjson

MAX_HEAD = 1 << 16


class Broken(Exception):
    """The answer cannot be used; the message says why."""


@dataclass(slots=True)
class Answer:
    """What came back so far. Times are of the monotonic clock."""

    collect: bool = False
    """Keep text and token ids, for the next turn of a conversation."""
    times: list[float] = field(default_factory=list)
    """When each event with generated content was read."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    done: bool = False
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def event(self, payload: bytes, now: float) -> None:
        """Take in the data of one event. Raises Broken when it is an error or no JSON."""
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            data = orjson.loads(payload)
        except ValueError:
            raise Broken(f"The server streamed something that is not JSON: {payload[:200]!r}") from None
        if not isinstance(data, dict) or data.get("error"):
            raise Broken(f"The server streamed an error: {payload[:300].decode(errors='replace')}")
        choices = data.get("choices")
        if choices:
            self._choice(choices[0], now)
        usage = data.get("usage")
        if usage:
            self.prompt_tokens, self.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        delta = choice.get("delta")
        # A chat answer opens with a chunk that holds the role alone: no token has been generated for it.
        if delta is not None and "role" in delta and not (delta.get("content") or delta.get("reasoning_content")):
            return
        self.times.append(now)
        if self.collect:
            self.texts.append((choice.get("text") if delta is None else delta.get("content")) or "")
            self.ids.extend(choice.get("token_ids") or ())


class Connection:
    """A keep-alive connection that answers one request at a time. `ready` is called by the event loop."""

    __slots__ = ("_asked", "_body", "_in_head", "_left", "_lines", "_out", "_sock", "_status", "answer", "fd", "heard", "reusable")

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.connect_ex(address)
        self.fd = self._sock.fileno()
        self.answer: Answer | None = None
        self.reusable, self.heard, self._asked = True, False, 0
        self._out = memoryview(b"")

    @property
    def stale(self) -> bool:
        """Whether it failed before any byte of this answer, having served others: the server closed it while idle."""
        return self._asked > 1 and not self.heard

    def ask(self, request: bytes, collect: bool) -> bool:
        """Begin a request; returns whether all of it is out. Raises Broken when the server is gone."""
        self.answer = Answer(collect)
        self.reusable, self.heard = True, False
        self._asked += 1
        self._in_head, self._status = True, 0
        self._left: int | None = 0
        self._body, self._lines = b"", b""
        self._out = memoryview(request)
        return self.flush()

    def flush(self) -> bool:
        """Send on; returns whether all is out. Raises Broken when the server is gone."""
        while self._out:
            try:
                self._out = self._out[self._sock.send(self._out) :]
            except BlockingIOError:
                return False
            except OSError as error:
                raise Broken(f"The connection failed while sending: {error.strerror or error}.") from None
        return True

    def read(self, now: float) -> bool:
        """Take in what has arrived; returns whether the answer is complete. Raises Broken."""
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Broken(f"The connection failed: {error.strerror or error}.") from None
        if not data:
            self.reusable = False
            if self._left is None and not self._in_head:
                return self._finish()
            raise Broken("The server closed the connection before the answer was complete.")
        self.heard = True
        data = self._body + data if self._body else data
        if self._in_head:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._body = head
                if len(head) > MAX_HEAD:
                    raise Broken("The server's answer has no end of its header.")
                return False
            self._read_head(head)
        return self._read_body(data, now)

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        try:
            self._status = int(first.split(b" ", 2)[1])
        except (IndexError, ValueError):
            raise Broken(f"The server does not speak HTTP: {first[:100]!r}") from None
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if fields.get(b"connection", b"").lower() == b"close":
            self.reusable = False
        self._in_head = False
        # `_left`: bytes to come, -1 while chunked, None until the server closes.
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._left = -1
        else:
            self._left = int(fields[b"content-length"]) if b"content-length" in fields else None

    def _read_body(self, data: bytes, now: float) -> bool:
        if self._left == -1:
            return self._read_chunks(data, now)
        self._body = b""
        self._take(data, now)
        if self._left is None:
            return False
        self._left -= len(data)
        return self._finish() if self._left <= 0 else False

    def _read_chunks(self, data: bytes, now: float) -> bool:
        at, end = 0, len(data)
        while True:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            try:
                size = int(data[at:line].split(b";", 1)[0], 16)
            except ValueError:
                raise Broken(f"The server's chunked encoding is broken: {data[at : at + 40]!r}") from None
            stop = line + 2 + size
            if stop + 2 > end:
                break
            if size == 0:
                return self._finish()
            self._take(data[line + 2 : stop], now)
            at = stop + 2
        self._body = data[at:]
        return False

    def _take(self, data: bytes, now: float) -> None:
        """Feed decoded body bytes; whole lines of events are handled at once."""
        if self._lines:
            data = self._lines + data
        if self._status != 200:
            self._lines = data[:2000]
            return
        lines = data.split(b"\n")
        self._lines = lines.pop()
        answer = self.answer
        assert answer is not None
        for line in lines:
            if line.startswith(b"data:"):
                answer.event(line[5:].strip(), now)

    def _finish(self) -> bool:
        assert self.answer is not None
        if self._status != 200:
            raise Broken(f"The server answered HTTP {self._status}: {self._lines[:300].decode(errors='replace')}")
        return True

    def close(self) -> None:
        """Drop the connection; the server sees it and may abort the request."""
        self._sock.close()
