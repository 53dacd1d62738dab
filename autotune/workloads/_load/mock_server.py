"""A fake OpenAI server with a known time to first token and inter-token latency, for tests and for measuring clients.

    python -m autotune.workloads._load.mock_server --port 0 --ttft-ms 50 --itl-ms 10 [--fault KIND --fault-after N]

Prints `listening PORT` once it serves. Tokens are due at absolute times after the request was read, so that lateness does
not add up. Faults begin with request number N: `hang` (the answer stops after its first token), `silent` (no answer at
all), `error` (HTTP 500), `stream-error` (an error event), `wrong-count` (half the tokens that were asked), `no-usage`,
`close` (the connection closes in mid-answer), `die` (the process ends). GET /served tells what was really written when.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import selectors
import signal
from dataclasses import dataclass, field
from typing import Any

import orjson

FAULTS = ("hang", "silent", "error", "stream-error", "wrong-count", "no-usage", "close", "die")
MODEL = "mock"


@dataclass(slots=True)
class Behaviour:
    """How the server answers."""

    ttft_s: float
    itl_s: float
    fault: str | None = None
    fault_after: int = 0
    slots: int | None = None
    """Answers generated at once; further requests wait. None is no limit: latency then never depends on load."""
    seen: int = 0
    generated: int = 0
    running: int = 0
    waiting: int = 0
    served: list[tuple[float, float]] = field(default_factory=list)
    """Time to first token and time per further token of each answer as it was really written: the truth for a client."""


class Server:
    """Answers connections one after the other request."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._slots = asyncio.Semaphore(behaviour.slots) if behaviour.slots else contextlib.nullcontext()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection's life."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if method == "POST" and path.endswith("/completions"):
            return await self._complete(writer, orjson.loads(body), "chat" in path)
        _plain(writer, 200, *self._other(path))
        return True

    def _other(self, path: str) -> tuple[bytes, str]:
        behaviour = self._behaviour
        if path.endswith("/models"):
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mock", "max_model_len": 1 << 20}
            return orjson.dumps({"object": "list", "data": [model]}), "application/json"
        if path == "/metrics":
            series = {
                "vllm:generation_tokens_total": behaviour.generated,
                "vllm:num_requests_running": behaviour.running,
                "vllm:num_requests_waiting": behaviour.waiting,
                "vllm:num_preemptions_total": 0,
                "vllm:kv_cache_usage_perc": min(behaviour.running / 100, 1.0),
            }
            return "".join(f'{name}{{engine="0"}} {value}\n' for name, value in series.items()).encode(), "text/plain"
        return orjson.dumps(behaviour.served) if path == "/served" else b"{}", "application/json"

    async def _complete(self, writer: asyncio.StreamWriter, asked: dict[str, Any], chat: bool) -> bool:
        behaviour = self._behaviour
        arrived = asyncio.get_running_loop().time()
        number, behaviour.seen = behaviour.seen, behaviour.seen + 1
        fault = behaviour.fault if number >= behaviour.fault_after else None
        if fault == "die":
            os._exit(1)
        if fault == "error":
            _plain(writer, 500, b'{"error": {"message": "mock failure"}}', "application/json")
            return True
        if fault == "silent":
            await asyncio.sleep(3600)
        behaviour.waiting += 1
        async with self._slots:
            behaviour.waiting -= 1
            behaviour.running += 1
            try:
                start = asyncio.get_running_loop().time() if behaviour.slots else arrived
                return await self._stream(writer, asked, chat, fault, start)
            finally:
                behaviour.running -= 1

    async def _stream(
        self, writer: asyncio.StreamWriter, asked: dict[str, Any], chat: bool, fault: str | None, start: float
    ) -> bool:
        tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or 16
        tokens = max(tokens // 2, 1) if fault == "wrong-count" else tokens
        if not asked.get("stream"):
            await asyncio.sleep(self._behaviour.ttft_s + self._behaviour.itl_s * (tokens - 1))
            body = {"choices": [_choice(chat, False, " mock" * tokens, tokens)], "usage": _usage(asked, tokens)}
            _plain(writer, 200, orjson.dumps({**_envelope(chat), **body}), "application/json")
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        moments: list[float] = []
        for index in range(tokens):
            await self._until(start + self._behaviour.ttft_s + index * self._behaviour.itl_s)
            if index and fault in ("hang", "stream-error", "close"):
                return await _break(writer, fault)
            _event(writer, {**_envelope(chat), "choices": [_choice(chat, True, " mock", index, asked, tokens)]})
            self._behaviour.generated += 1
            moments.append(asyncio.get_running_loop().time())
            if writer.transport.is_closing():
                return False
        self._behaviour.served.append((moments[0] - start, (moments[-1] - moments[0]) / max(tokens - 1, 1)))
        if fault != "no-usage":
            _event(writer, {**_envelope(chat), "choices": [], "usage": _usage(asked, tokens)})
        writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True

    async def _until(self, moment: float) -> None:
        loop = asyncio.get_running_loop()
        while (left := moment - loop.time()) > 0:
            await asyncio.sleep(left)


def _plain(writer: asyncio.StreamWriter, status: int, body: bytes, kind: str) -> None:
    head = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    writer.write(_chunk(b"data: " + orjson.dumps(data) + b"\n\n"))


async def _break(writer: asyncio.StreamWriter, fault: str) -> bool:
    if fault == "hang":
        await asyncio.sleep(3600)
    if fault == "stream-error":
        _event(writer, {"error": {"message": "mock failure", "code": 500}})
        writer.write(b"0\r\n\r\n")
    return fault != "close"


def _envelope(chat: bool) -> dict[str, Any]:
    return {"id": "mock-1", "object": "chat.completion.chunk" if chat else "text_completion", "created": 0, "model": MODEL}


def _choice(
    chat: bool, stream: bool, text: str, index: int, asked: dict[str, Any] | None = None, tokens: int | None = None
) -> dict[str, Any]:
    last = tokens is None or index == tokens - 1
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length" if last else None}
    if chat:
        choice["delta" if stream else "message"] = {"content": text} if stream else {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    if asked is not None and asked.get("return_token_ids"):
        choice["token_ids"] = [1000 + index]
    return choice


def _usage(asked: dict[str, Any], tokens: int) -> dict[str, int]:
    """Prompt tokens: the ids of a prompt, the words of a text."""
    prompt = asked.get("prompt")
    if prompt is None:
        prompt = " ".join(str(message.get("content")) for message in asked.get("messages", ()))
    count = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    return {"prompt_tokens": count, "completion_tokens": tokens, "total_tokens": count + tokens}


class PreciseSelector(selectors.EpollSelector):
    """epoll counts milliseconds, which would make every token up to one late; select on its descriptor counts microseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As its base."""
        if timeout is None or timeout > 0:
            select.select([self], [], [], timeout)
        return super().select(0)


async def _main(arguments: argparse.Namespace) -> None:
    behaviour = Behaviour(
        arguments.ttft_ms / 1000, arguments.itl_ms / 1000, arguments.fault, arguments.fault_after, arguments.slots
    )
    server = await asyncio.start_server(Server(behaviour).serve, "127.0.0.1", arguments.port, backlog=4096, limit=1 << 26)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--slots", type=int, default=None)
    parser.add_argument("--fault", choices=FAULTS, default=None)
    parser.add_argument("--fault-after", type=int, default=0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PreciseSelector())) as runner:
        runner.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
