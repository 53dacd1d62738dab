"""What engines answer to fixed prompts, and how far one engine's answers are from another's. Pure.

Nothing is sampled: the prompt's own tokens are compared, and a greedy answer up to the first token that differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, FiniteFloat, ValidationError

from autotune.errors import InvalidInput, Mistake
from autotune.trial import Frozen, TrialRecord, Value

FACT = "quality"
"""Where a measurement keeps the answers of its engine: `answers`, or `unchecked` with the reason why there are none."""
SHIPPED = Path(__file__).parent / "data" / "quality" / "prompts.jsonl"
_MOST_PROMPTS = 1000


class Answer(Frozen):
    """What an engine gives the tokens of one prompt and of its own greedy answer; logarithms of probabilities, in nats."""

    tokens: str
    """Digest of the prompt's token ids: only the same tokens can be compared."""
    read: tuple[FiniteFloat, ...] = Field(min_length=1)
    """Of each of the prompt's tokens but the first, given those before it."""
    top: tuple[int, ...]
    """The likeliest token in each of these places."""
    written: tuple[tuple[tuple[int, FiniteFloat], ...], ...] = ()
    """In each place of the answer the likeliest tokens with theirs, the chosen one first."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far answers are from the reference's."""

    nats: float
    """Mean absolute difference of a token's log-probability: the larger of that over the prompts and over the answers."""
    agreement: float
    """Share of the prompts' places in which both find the same token the likeliest."""


def drift(answers: Sequence[Answer], reference: Sequence[Answer]) -> Drift | None:
    """How far answers are from the reference's; None where they were not given to the same tokens.

    Prompts and answers are judged apart because an engine may read a prompt without the KV cache's type having a part in
    it, while every token that it writes is read from there.
    """
    if not answers or [one.tokens for one in answers] != [one.tokens for one in reference]:
        return None
    pairs = list(zip(answers, reference, strict=True))
    if any(len(one.read) != len(other.read) for one, other in pairs):
        return None
    read = [abs(ours - theirs) for one, other in pairs for ours, theirs in zip(one.read, other.read, strict=True)]
    written = [difference for one, other in pairs for difference in _written(one, other)]
    same = [ours == theirs for one, other in pairs for ours, theirs in zip(one.top, other.top, strict=False)]
    return Drift(max(_mean(read), _mean(written)), sum(same) / len(same) if same else math.nan)


def _written(one: Answer, other: Answer) -> list[float]:
    """Differences up to the first place where the answers part, that place included.

    A token of the reference that is not among the likeliest there has at most the probability of the last of them, so its
    difference is at least the one to that.
    """
    found = []
    for ours, theirs in zip(one.written, other.written, strict=False):
        if not ours or not theirs:
            break
        token, expected = theirs[0]
        known = dict(ours)
        found.append(abs(known[token] - expected) if token in known else max(0.0, expected - min(known.values())))
        if ours[0][0] != token:
            break
    return found


def prompts(path: Path | None) -> tuple[str, ...]:
    """The prompts of a JSONL file, one object with a `prompt` a line; those that ship when there is no path.

    Raises InvalidInput.
    """
    place = "quality.prompts"
    try:
        lines = (path or SHIPPED).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidInput([Mistake(place, f"The prompts in {path} cannot be read: {error.strerror}.")]) from None
    except UnicodeDecodeError:
        raise InvalidInput([Mistake(place, f"The prompts in {path} cannot be read: it is not a UTF-8 text.")]) from None
    found = [(number, _prompt(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, text in found:
        if text is None:
            problem = f'Line {number} of {path} is not a JSON object with a text, such as {{"prompt": "Once upon a time"}}.'
            raise InvalidInput([Mistake(place, problem)])
    if not 1 <= len(found) <= _MOST_PROMPTS:
        raise InvalidInput([Mistake(place, f"There are {len(found)} prompts; 1 to {_MOST_PROMPTS} can be asked.")])
    return tuple(text for _, text in found if text is not None)


def _prompt(line: str) -> str | None:
    try:
        text = json.loads(line)["prompt"]
    except (ValueError, LookupError, TypeError):
        return None
    return text if isinstance(text, str) and text.strip() else None


def fact(record: TrialRecord) -> Mapping[str, Value]:
    """What a trial's measurement keeps of its engine's answers; nothing for a trial that was not to be asked."""
    found = record.measurement.facts.get(FACT) if record.measurement is not None else None
    return found if isinstance(found, Mapping) else {}


def given(record: TrialRecord) -> tuple[Answer, ...]:
    """What a trial's engine answered; nothing for one that was not asked, or whose record another version wrote."""
    try:
        return tuple(Answer.model_validate(one) for one in fact(record).get("answers", ()))
    except ValidationError:
        return ()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
