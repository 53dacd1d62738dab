"""Ready traffic, load and bounds for the common uses of a serving engine. A study overrides any of their sections.

`chat` and `code-completion` look for the highest rate that meets their bounds; `offline`, `shared-prefix` and `agents`
hold a number of requests in flight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Interactive: the first token decides; lengths spread as in public chat logs.
    "chat": {
        "traffic": {
            "input_tokens": {"lognormal": {"mean": 400, "std": 400, "min": 16, "max": 2048}},
            "output_tokens": {"lognormal": {"mean": 200, "std": 150, "min": 16, "max": 768}},
        },
        "load": [{"slo_climb": {"constraints": ["ttft_ms.p99 <= 500", "tpot_ms.p95 <= 50"], "start": 2}}],
        "goodput": {"ttft_ms": 500, "tpot_ms": 50},
    },
    # Batch: tokens per second decide; nobody waits for the first token.
    "offline": {
        "traffic": {"input_tokens": {"uniform": [512, 1536]}, "output_tokens": {"uniform": [64, 256]}},
        "load": [{"concurrency": 64}, {"concurrency": 256}, {"concurrency": 512}],
        "window": {"warm_up_s": 20, "measure_s": 30, "deadline_s": 180},
    },
    # Mixed: long context, short answer, a bound on both the first token and the reading speed.
    "code-completion": {
        "traffic": {"input_tokens": {"uniform": [1024, 2048]}, "output_tokens": {"uniform": [16, 64]}},
        "load": [{"slo_climb": {"constraints": ["ttft_ms.p95 <= 200", "tpot_ms.p95 <= 20"], "start": 2}}],
        "goodput": {"ttft_ms": 200, "tpot_ms": 20},
    },
    # A few long system prompts in front of short questions: what prefix caching is for.
    "shared-prefix": {
        "traffic": {
            "input_tokens": {"uniform": [64, 256]},
            "output_tokens": {"uniform": [64, 192]},
            "shared_prefix": {"tokens": 1024, "count": 8},
        },
        "load": [{"concurrency": 16}, {"concurrency": 128}],
    },
    # Conversations with tool results: every turn carries all earlier ones, and the next comes at once.
    "agents": {
        "traffic": {
            "input_tokens": {"lognormal": {"mean": 300, "std": 300, "min": 32, "max": 1024}},
            "output_tokens": {"uniform": [32, 128]},
            "shared_prefix": {"tokens": 1024, "count": 1},
            "turns": {"uniform": [3, 8]},
        },
        "load": [{"concurrency": 8}, {"concurrency": 64}],
        "window": {"warm_up_s": 20, "measure_s": 30, "deadline_s": 120},
    },
}
"""Preset name → the sections it fills."""
