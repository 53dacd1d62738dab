"""The record of one request, and the log of a level on disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson


@dataclass(frozen=True, slots=True)
class Request:
    """What one request asked and got. Times are seconds since the level began."""

    number: int
    turn: int
    status: Literal["finished", "failed", "cut"]
    due: float
    """Intended arrival; every latency counts from here."""
    sent: float
    times: tuple[float, ...]
    """When each event with generated content was read."""
    prompt_tokens: int | None
    output_tokens: int | None
    """As counted by the server's usage."""
    asked_prompt_tokens: int | None
    asked_output_tokens: int
    error: str = ""

    @property
    def ttft_ms(self) -> float:
        """Intended arrival to the first generated content."""
        return (self.times[0] - self.due) * 1000

    @property
    def e2e_ms(self) -> float:
        """Intended arrival to the last generated content."""
        return (self.times[-1] - self.due) * 1000

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first; None for a single token."""
        if self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) * 1000 / (self.output_tokens - 1)

    def miscount(self, exact: bool) -> str | None:
        """How the token counts differ from what was asked; None when they agree. `exact`: the answer was not to end early."""
        if self.output_tokens is None or self.prompt_tokens is None:
            return "the server sent no usage"
        if self.asked_prompt_tokens is not None and self.prompt_tokens != self.asked_prompt_tokens:
            return f"asked with {self.asked_prompt_tokens} prompt tokens, the server counted {self.prompt_tokens}"
        wrong = self.output_tokens != self.asked_output_tokens if exact else self.output_tokens > self.asked_output_tokens
        return f"asked for {self.asked_output_tokens} output tokens, got {self.output_tokens}" if wrong else None


def from_json(record: Mapping[str, Any]) -> Request:
    """A request from a line of the log."""
    return Request(**{**record, "times": tuple(record["times"])})


def write_log(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a level's requests as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.writelines(orjson.dumps(record) + b"\n" for record in records)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_log(path: Path) -> list[Request]:
    """The requests of a level's log."""
    return [from_json(orjson.loads(line)) for line in path.read_bytes().splitlines()]
