"""What tuning guides say of single settings against what was measured: a claim, a ratio with its interval, a verdict.

    autotune run studies/h200/folklore-chat.yaml; autotune run studies/h200/folklore-prefix.yaml
    python benchmarks/folklore.py [--store .autotune] [--out studies/results/h200-folklore/README.md]

A claim is upheld when the whole 95 % interval of the ratio lies where the guide puts it, refuted when all of it lies
elsewhere, and undecided otherwise. A claim whose study or trial is missing says so.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import results
from autotune.errors import AutotuneError
from autotune.results import StudyResults
from autotune.trial import Value

SAME = 0.03
"""Guides that call a setting best are read as: no other is better by more than this."""


@dataclass(frozen=True)
class Claim:
    """A guide's sentence about one setting: the metric's ratio of `setting` over the default lies between `low` and `high`."""

    text: str
    study: str
    setting: Mapping[str, Value]
    metric: str
    low: float = 0.0
    high: float = float("inf")


CLAIMS = (
    Claim("Prefix reuse adds 20 to 40 % throughput: without it at most 1/1.2 is left.", "folklore-prefix",
          {"enable_prefix_caching": False}, "output_tokens_per_s", high=1 / 1.2),
    Claim("... and not less than 1/1.4.", "folklore-prefix", {"enable_prefix_caching": False}, "output_tokens_per_s", low=1 / 1.4),
    Claim("An fp8 KV cache needs 40 % less memory for the same tokens: at equal memory it holds at least 1/0.6 as many.",
          "folklore-chat", {"kv_cache_dtype": "fp8"}, "kv_cache_tokens", low=1 / 0.6),
    Claim("An fp8 KV cache costs no throughput.", "folklore-chat", {"kv_cache_dtype": "fp8"}, "output_tokens_per_s", low=1 - SAME),
    Claim("Block size 16 is best: 32 is not faster.", "folklore-chat", {"block_size": 32}, "output_tokens_per_s", high=1 + SAME),
    Claim("Block size 16 is best: 128 is not faster.", "folklore-chat", {"block_size": 128}, "output_tokens_per_s", high=1 + SAME),
    Claim("Large blocks are for long prompts: 64 beats 16 on 2,100-token prompts.", "folklore-prefix", {"block_size": 64},
          "output_tokens_per_s", low=1 + SAME),
    Claim("max_num_batched_tokens must exceed 2048 for throughput: 2048 is slower than the default.", "folklore-chat",
          {"max_num_batched_tokens": 2048}, "output_tokens_per_s", high=1 - SAME),
    Claim("max_num_batched_tokens up to 32768 gives more throughput.", "folklore-chat", {"max_num_batched_tokens": 32768},
          "output_tokens_per_s", low=1 + SAME),
    Claim("Serving alone wants gpu_memory_utilization of 0.85 to 0.95: 0.5 is slower.", "folklore-chat",
          {"gpu_memory_utilization": 0.5}, "output_tokens_per_s", high=1 - SAME),
    Claim("Chunked prefill keeps latency down: without it the TTFT tail grows.", "folklore-chat",
          {"enable_chunked_prefill": False}, "ttft_ms.p99 @ request_rate=30", low=1 + SAME),
    Claim("CUDA graphs matter: eager is slower.", "folklore-chat", {"enforce_eager": True}, "output_tokens_per_s", high=1 - SAME),
    Claim("Asynchronous scheduling hides the scheduler: without it tokens come slower.", "folklore-chat",
          {"async_scheduling": False}, "tpot_ms.p50 @ request_rate=30", low=1 + SAME),
)  # fmt: skip


def row(claim: Claim, studies: Mapping[str, StudyResults]) -> str:
    """One line of the table."""
    setting = ", ".join(f"{name}={value}" for name, value in claim.setting.items())
    return f"| {claim.text} | {setting} | {claim.metric} | " + " | ".join(answer(claim, studies)) + " |"


def answer(claim: Claim, studies: Mapping[str, StudyResults]) -> tuple[str, str]:
    """What was measured, and the verdict."""
    found = studies.get(claim.study)
    if found is None:
        return f"the study {claim.study} was not run", "not measured"
    tried = [record for record in found.records if dict(record.configuration.values) == dict(claim.setting)]
    if not tried:
        return "the setting was not tried", "not measured"
    try:
        gain = found.gain(claim.metric, trial=tried[0].number)
    except AutotuneError as error:
        return str(error), "not measured"
    if gain.ratio is None or gain.low is None or gain.high is None:
        return str(gain), "undecided"
    shown = f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}] ({gain.value:.4g} against {gain.default:.4g})"
    return shown, verdict(claim, gain.low, gain.high)


def verdict(claim: Claim, low: float, high: float) -> str:
    """Upheld, refuted or undecided by the interval of the ratio."""
    if claim.low <= low and high <= claim.high:
        return "upheld"
    return "refuted" if high < claim.low or low > claim.high else "undecided"


def page(studies: Mapping[str, StudyResults], claims: Sequence[Claim] = CLAIMS) -> str:
    """The table with where it comes from."""
    about = []
    for name, found in studies.items():
        known = [note.payload for note in found.notes if note.kind == "engines"]
        for kind, identity in known[-1].items() if known else ():
            about.append(f"- `{name}`: {kind} {identity['version']} on {identity['device']}, {len(found.records)} trials.")
    head = ["| claim | setting against the default | metric | ratio measured [95 %] | verdict |", "|---|---|---|---|---|"]
    return "\n".join(
        ["# Claims of tuning guides, measured", "", f"{datetime.date.today()}; `python benchmarks/folklore.py`", "", *about, ""]
        + head
        + [row(claim, studies) for claim in claims]
        + [""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path(".autotune"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    studies = {}
    for name in sorted({claim.study for claim in CLAIMS}):
        try:
            studies[name] = results.load(name, arguments.store)
        except AutotuneError as error:
            print(error)
    text = page(studies)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
