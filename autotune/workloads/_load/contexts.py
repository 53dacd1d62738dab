"""How long the contexts are that a workload's requests need, beside what the engine of a study was given."""

from __future__ import annotations

import random

from autotune import models, synthetic
from autotune.engines.base import EngineOptions
from autotune.workloads._load.options import Traffic
from autotune.workloads._load.traffic import lengths

_NAMES = ("max_model_len", "context_length")
"""vLLM's and SGLang's names of the longest context."""
_CONVERSATIONS = 1000


def limit(options: EngineOptions) -> tuple[str, int] | None:
    """The option that bounds a request's context, and its tokens: what the study fixes, else what a synthetic model has.

    None where neither is known without asking the engine, which may stretch the positions of another model.
    """
    for name in _NAMES:
        if name in options.fixed:
            value = options.fixed[name]
            known = isinstance(value, int) and not isinstance(value, bool) and value > 0
            return (f"fixed.{name}", int(value)) if known else None
    facts = models.facts(options.model) if synthetic.is_synthetic(options.model) else None
    return None if facts is None else ("model", facts.max_positions)


def needed(traffic: Traffic) -> list[int]:
    """Tokens of prompt and answer together, of each request of some conversations; empty for a dataset or a trace."""
    if traffic.input_tokens is None or traffic.output_tokens is None:
        return []
    fresh, answer, turns = (lengths(one.model_dump()) for one in (traffic.input_tokens, traffic.output_tokens, traffic.turns))
    draw, found = random.Random(0), list[int]()
    for _ in range(_CONVERSATIONS):
        tokens = traffic.shared_prefix.tokens if traffic.shared_prefix else 0
        for _ in range(turns(draw)):
            tokens += fresh(draw) + answer(draw)
            found.append(tokens)
    return found
