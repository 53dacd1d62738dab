"""Our load client and vLLM's `bench serve` on one running vLLM: do they measure the same?

    python benchmarks/agreement.py [--repeats 5] [--model synthetic:tiny] [--requests 160] [--concurrency 8]

Both send the same prompts (a dataset of random words, 128 tokens in, 32 out) closed loop, in turns, with the prefix cache
emptied before each run. Printed: each figure's median and spread per client, and whether the medians differ by less than
the runs of either client differ among themselves (the larger of the two ranges). Run it from an environment with vLLM.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import sys
from pathlib import Path

import numpy as np
from bench_serve import BenchServe
from one_server import served

from autotune import engines
from autotune.session import Session
from autotune.workloads._load.fixed import run_fixed
from autotune.workloads._load.options import HttpOptions
from autotune.workloads._load.plans import pieces
from autotune.workloads._load.requests import from_json

INPUT, OUTPUT = 128, 32
FIGURES = ("output_tokens_per_s", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p99", "e2e_ms.p50")


def write_prompts(path: Path, session: Session, requests: int, seed: int) -> None:
    """Random words that are one token each, for both clients."""
    options = HttpOptions.model_validate(
        {"endpoint": "chat", "traffic": {"input_tokens": 1, "output_tokens": 1}, "load": [{"concurrency": 1}]}
    )
    words = pieces(options, session.model_folder or Path(session.model))["words"]
    draw = random.Random(seed)
    rows = ({"prompt": "".join(draw.choices(words, k=INPUT)).strip(), "output_tokens": OUTPUT} for _ in range(requests))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(session: Session, prompts: Path, requests: int, concurrency: int) -> dict[str, float]:
    """Our client. The rate is taken over the whole run, as `bench serve` does."""
    options = HttpOptions.model_validate({"traffic": {"dataset": prompts}, "load": [{"concurrency": concurrency}]})
    log = [from_json(record) for record in run_fixed(options, str(session.endpoint), session.model, requests).records]
    assert all(each.status == "finished" for each in log), {each.error for each in log}
    seconds = max(each.times[-1] for each in log) - min(each.sent for each in log)
    return {
        "output_tokens_per_s": sum(each.output_tokens or 0 for each in log) / seconds,
        **percentiles("ttft_ms", [each.ttft_ms for each in log]),
        **percentiles("tpot_ms", [each.tpot_ms or 0.0 for each in log]),
        **percentiles("e2e_ms", [each.e2e_ms for each in log]),
    }


def theirs(session: Session, prompts: Path, requests: int, concurrency: int) -> dict[str, float]:
    """`vllm bench serve`."""
    report = BenchServe(
        url=str(session.endpoint),
        model=session.model,
        tokenizer=session.model_folder or session.model,
        prompts=prompts,
        requests=requests,
        pace=("--max-concurrency", concurrency),
        output_tokens=OUTPUT,
    ).run()
    ttfts = [ttft * 1000 for ttft in report["ttfts"]]
    spans = [sum(gaps) * 1000 for gaps in report["itls"]]
    return {
        "output_tokens_per_s": report["output_throughput"],
        **percentiles("ttft_ms", ttfts),
        **percentiles("tpot_ms", [span / (OUTPUT - 1) for span in spans]),
        **percentiles("e2e_ms", [ttft + span for ttft, span in zip(ttfts, spans, strict=True)]),
    }


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}.p{q}": float(np.percentile(values, q)) for q in (50, 99)}


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Median [lowest, highest] of each figure, and the verdict."""
    names = ("figure", "autotune", "vllm bench serve", "medians differ by", "run-to-run range", "agree")
    lines = [f"| {' | '.join(names)} |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for figure in FIGURES:
        values = {name: [run[figure] for run in found] for name, found in runs.items()}
        middle = {name: statistics.median(found) for name, found in values.items()}
        spread = max(max(found) - min(found) for found in values.values())
        apart = abs(middle["autotune"] - middle["vllm"])
        cells = [f"{middle[name]:.2f} [{min(found):.2f}, {max(found):.2f}]" for name, found in values.items()]
        lines.append(f"| {figure} | {cells[0]} | {cells[1]} | {apart:.2f} | {spread:.2f} | {'yes' if apart <= spread else 'NO'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    kind = engines.get("vllm")
    fixed = {"max_model_len": 1024, "enforce_eager": True}
    engine = kind(kind.Options.model_validate({"kind": "vllm", "model": arguments.model, "fixed": fixed}))
    runs: dict[str, list[dict[str, float]]] = {"autotune": [], "vllm": []}
    with served(engine, "agreement") as (session, context):
        prompts = context.folder / "prompts.jsonl"
        for repeat in range(-1, arguments.repeats):
            write_prompts(prompts, session, arguments.requests, repeat)
            for client, measure in (("autotune", ours), ("vllm", theirs)):
                assert session.reset_caches(), "The prefix cache could not be emptied."
                found = measure(session, prompts, arguments.requests, arguments.concurrency)
                print(repeat, client, {figure: round(found[figure], 2) for figure in FIGURES}, file=sys.stderr, flush=True)
                # The first round warms the engine up.
                if repeat >= 0:
                    runs[client].append(found)
    identity = engine.identity()
    where = f"{identity.kind} {identity.version} on {identity.device}, {os.cpu_count()} cores"
    print(f"{datetime.date.today()}; {where}, load average {os.getloadavg()[0]:.1f}, {arguments.model}")
    load = f"{arguments.requests} requests x {OUTPUT} tokens, concurrency {arguments.concurrency}"
    print(f"{load}; {arguments.repeats} runs of each client, in turns: median [lowest, highest].\n")
    print(table(runs))


if __name__ == "__main__":
    main()
