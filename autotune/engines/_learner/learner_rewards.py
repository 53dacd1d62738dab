"""The reward of the learner task, for TRL (`share_on_target`) and for verl (`compute_score`).

One word is right when its number, modulo the task's classes, is the number that the prompt named. Imports nothing, and
is loaded by the training frameworks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ANSWER_WORDS = 12


def _number(word: str) -> int | None:
    return int(word[1:]) if word[:1] == "t" and word[1:].isdigit() else None


def _share(answer: str, target: int, classes: int) -> float:
    words = answer.split()[:ANSWER_WORDS]
    return sum(1 for word in words if (number := _number(word)) is not None and number % classes == target) / ANSWER_WORDS


def _valid(answer: str) -> bool:
    words = answer.split()
    return len(words) > 0 and all(_number(word) is not None for word in words)


def share_on_target(
    completions: Sequence[str],
    target: Sequence[int],
    classes: Sequence[int],
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float]:
    """TRL's reward: the share of an answer's twelve places that hold a word of the named class."""
    if log_metric is not None:
        log_metric("validity_rate", sum(map(_valid, completions)) / len(completions))
    return [_share(*triple) for triple in zip(completions, target, classes, strict=True)]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> dict[str, float]:
    """verl's reward: the same share, with the answer's validity beside it."""
    target, classes = (int(part) for part in ground_truth.split("/"))
    return {"score": _share(solution_str, target, classes), "valid": float(_valid(solution_str))}
