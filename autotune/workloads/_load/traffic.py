"""The content of requests: request number i of a level is a pure function of the seed and i, whichever process sends it.

Prompts are cut out of one long random text made once, behind a few tokens of their own, so that making one costs
microseconds and no two share a prefix (engines reuse KV blocks by prefix only) unless the traffic asks for it.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson

POOL_TOKENS = 1 << 17
"""Tokens of the long text. Much longer than a prompt, so that cuts at random places hardly overlap."""
OWN_TOKENS = 4
"""Tokens drawn afresh at the head of each prompt: with 10,000 pieces, one in 10^16 pairs begins alike."""

Lengths = Callable[[random.Random], int]


@dataclass(slots=True)
class Ask:
    """One request: its body, and the token counts that its answer must show (None where they are not known before)."""

    body: bytes
    prompt_tokens: int | None
    output_tokens: int


def lengths(spec: Mapping[str, Any]) -> Lengths:
    """A sampler of a `LengthDistribution` given as JSON."""
    if spec.get("exactly") is not None:
        exactly = int(spec["exactly"])
        return lambda draw: exactly
    if spec.get("uniform") is not None:
        low, high = spec["uniform"]
        return lambda draw: draw.randint(low, high)
    name = "normal" if spec.get("normal") is not None else "lognormal"
    bell = spec[name]
    mean, std, low, high = bell["mean"], bell["std"], bell["min"], bell["max"]
    if name == "normal":
        return lambda draw: min(max(round(draw.gauss(mean, std)), low), high)
    spread = math.log1p((std / mean) ** 2)
    mu, sigma = math.log(mean) - spread / 2, math.sqrt(spread)
    return lambda draw: min(max(round(draw.lognormvariate(mu, sigma)), low), high)


class Pool:
    """One long random text of single-token pieces, from which prompts are cut."""

    def __init__(self, pieces: Sequence[bytes], seed: int, size: int = POOL_TOKENS) -> None:
        self._pieces = pieces
        chosen = random.Random(seed).choices(pieces, k=size)
        self._text = b"".join(chosen)
        self._ends = array("q", accumulate((len(piece) for piece in chosen), initial=0))
        self._size = size

    def cut(self, count: int, draw: random.Random) -> bytes:
        """`count` pieces: a few of their own, then a slice from a random place."""
        own = min(count, OWN_TOKENS)
        parts = draw.choices(self._pieces, k=own)
        left = count - own
        while left > 0:
            start = draw.randrange(self._size)
            stop = min(start + left, self._size)
            parts.append(self._text[self._ends[start] : self._ends[stop]])
            left -= stop - start
        return b"".join(parts)


@dataclass(slots=True)
class Conversation:
    """The turns of one user. `ask` gives the next request or None; `answered` adds what came back to the history."""

    source: Source
    turns: list[tuple[bytes, int, int]]
    """Content, its tokens, and the answer's tokens of each turn to come, the last one first."""
    history: list[bytes] = field(default_factory=list)
    history_tokens: int = 0

    def ask(self) -> Ask | None:
        """The next turn's request; None after the last."""
        if not self.turns:
            return None
        content, tokens, answer = self.turns.pop()
        self.history.append(self.source.said("user", content))
        self.history_tokens += tokens
        return self.source.render(self.history, self.history_tokens, answer)

    def answered(self, ids: Sequence[int], text: str, tokens: int) -> None:
        """Put the answer into the history: its token ids, or its text. Without either, random content stands in."""
        if self.source.chat:
            self.history.append(self.source.said("assistant", orjson.dumps(text)[1:-1]))
        elif len(ids) == tokens:
            self.history.append(b"".join(b"%d," % token for token in ids))
        else:
            self.history.append(self.source.pool.cut(tokens, random.Random(len(self.turns))))
        self.history_tokens += tokens


class Source:
    """Makes the conversations of a level from its plan (see `crew.level_plan`)."""

    def __init__(self, plan: Mapping[str, Any]) -> None:
        traffic = plan["traffic"]
        self.chat = plan["endpoint"] == "chat"
        self._seed = int(plan["seed"])
        pieces = plan["pieces"]
        words = [orjson.dumps(word)[1:-1] for word in pieces["words"]] if "words" in pieces else None
        self.pool = Pool(words or [b"%d," % token for token in range(*pieces["ids"])], self._seed)
        several = _highest(traffic["turns"]) > 1
        self.collect = several
        prompt = b',"messages":' if self.chat else b',"prompt":'
        self._head = orjson.dumps({"model": plan["model"]})[:-1] + prompt
        self._exact = bool(plan["ignore_eos"])
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        ids = {"return_token_ids": True} if several and not self.chat else {}
        self._rest = orjson.dumps({**streamed, **ids, **plan["body"]})[1:]
        self._input, self._output = (
            lengths(spec) if spec else None for spec in (traffic["input_tokens"], traffic["output_tokens"])
        )
        self._turns = lengths(traffic["turns"])
        self._prefix = traffic["shared_prefix"]
        self._prefix_seed = int(plan["prefix_seed"])
        self._rows = recorded_rows(traffic, self._seed)
        self._block = int(traffic["trace_block_tokens"])
        self._is_trace = traffic["trace"] is not None

    def begin(self, number: int, part: float = 1.0) -> Conversation:
        """Conversation `number` of the level; `part` shortens its first answer."""
        conversation = self._conversation(number)
        if part < 1:
            content, tokens, answer = conversation.turns[-1]
            conversation.turns[-1] = (content, tokens, max(round(answer * part), 1))
        return conversation

    def _conversation(self, number: int) -> Conversation:
        draw = random.Random(self._seed * 1_000_003 + number)
        if self._rows is not None:
            return self._from_row(self._rows[number % len(self._rows)], number // len(self._rows), draw)
        assert self._input is not None and self._output is not None
        turns = []
        for _ in range(self._turns(draw)):
            tokens, answer = self._input(draw), self._output(draw)
            turns.append((self.pool.cut(tokens, draw), tokens, answer))
        conversation = Conversation(self, turns[::-1])
        if self._prefix is not None:
            group = draw.randrange(self._prefix["count"])
            text = self.pool.cut(self._prefix["tokens"], random.Random(self._prefix_seed * 7919 + group))
            conversation.history.append(self.said("system", text))
            conversation.history_tokens = self._prefix["tokens"]
        return conversation

    def said(self, role: str, content: bytes) -> bytes:
        """One message of a chat, or its bare token ids."""
        return b'{"role":"%s","content":"%s"},' % (role.encode(), content) if self.chat else content

    def render(self, parts: Sequence[bytes], tokens: int | None, answer: int) -> Ask:
        """The request body for a history."""
        prompt = b"".join((b"[", *parts[:-1], parts[-1][:-1], b"]"))
        return Ask(self.body(prompt, answer), None if self.chat else tokens, answer)

    def body(self, prompt: bytes, answer: int) -> bytes:
        """The request body around a prompt given as JSON."""
        exact = b'"min_tokens":%d,"ignore_eos":true,' % answer if self._exact else b""
        return b'%s%s,"max_tokens":%d,%s%s' % (self._head, prompt, answer, exact, self._rest)

    def _from_row(self, row: Mapping[str, Any], cycle: int, draw: random.Random) -> Conversation:
        if self._is_trace:
            content = self._trace_content(row, cycle, draw)
            return Conversation(self, [(content, row["input_length"], row["output_length"])])
        answer = row.get("output_tokens") or (self._output(draw) if self._output else 0)
        ids = row.get("prompt_token_ids")
        return _Verbatim(self, [(_prompt_of(row, self.chat), len(ids) if ids is not None else 0, answer)])

    def _trace_content(self, row: Mapping[str, Any], cycle: int, draw: random.Random) -> bytes:
        """Blocks with the same hash id have the same content, until the trace is read again."""
        left, parts = int(row["input_length"]), []
        for block in row.get("hash_ids", ()):
            size = min(left, self._block)
            if size > 0:
                parts.append(self.pool.cut(size, random.Random(self._prefix_seed + block * 7919 + cycle * 104_729)))
            left -= size
        return b"".join([*parts, self.pool.cut(left, draw)] if left > 0 else parts)


class _Verbatim(Conversation):
    """A single request whose prompt stands in a dataset, as JSON; its tokens are known when it is made of token ids."""

    def ask(self) -> Ask | None:
        if not self.turns:
            return None
        prompt, tokens, answer = self.turns.pop()
        return Ask(self.source.body(prompt, answer), tokens or None, answer)


def recorded_rows(traffic: Mapping[str, Any], seed: int) -> list[dict[str, Any]] | None:
    """The rows of the dataset, shuffled, or of the trace, by time; None for synthetic traffic."""
    path = traffic["dataset"] or traffic["trace"]
    if path is None:
        return None
    rows = [orjson.loads(line) for line in Path(path).read_bytes().splitlines() if line.strip()]
    if traffic["trace"] is not None:
        rows.sort(key=lambda row: row["timestamp"])
    else:
        random.Random(seed).shuffle(rows)
    return rows


def _prompt_of(row: Mapping[str, Any], chat: bool) -> bytes:
    if not chat:
        return orjson.dumps(row["prompt_token_ids"] if "prompt_token_ids" in row else row["prompt"])
    return orjson.dumps(row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}])


def _highest(spec: Mapping[str, Any]) -> int:
    bell = spec.get("normal") or spec.get("lognormal")
    return int(spec.get("exactly") or (spec["uniform"][1] if spec.get("uniform") else bell["max"] if bell else 1))
