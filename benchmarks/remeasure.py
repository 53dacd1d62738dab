"""A study's trial on a fresh launch, measured by vLLM's `bench serve`: is it what the study said?

    python benchmarks/remeasure.py STUDY [--store .autotune] [--trial N] [--out FILE]

Without `--trial` the study's best in its first objective. Each load level of the study is offered again, with prompts and
answers as long as the study's traffic draws them, and the figures are taken from `bench serve`'s own record of every
request, over the study's own window: warm-up cut in front, requests begun afterwards left out behind. The study's figure is
its mean over that configuration's runs with the 95 % interval, widened by the same noise for one more launch. For an
engine that serves vLLM's or SGLang's OpenAI endpoint; needs the interpreter of an environment with vLLM (`--vllm`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from bench_serve import BenchServe

from autotune import plan as plans
from autotune import results
from autotune.candidate import Candidate
from autotune.engines.base import Context
from autotune.errors import AutotuneError
from autotune.process import make_tag
from autotune.results import StudyResults
from autotune.session import Session
from autotune.workloads._load.options import HttpOptions, LengthDistribution, Load
from autotune.workloads._load.plans import pieces

METRICS = ("output_tokens_per_s", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p95")


def write_prompts(path: Path, options: HttpOptions, session: Session, count: int, seed: int) -> None:
    """A dataset of random words of one token each, as long as the study's traffic draws them."""
    chat = options.model_copy(update={"endpoint": "chat"})
    words = pieces(chat, session.model_folder or Path(session.model))["words"]
    draw = random.Random(seed)
    traffic = options.traffic
    shared = traffic.shared_prefix
    prefixes = ["".join(draw.choices(words, k=shared.tokens)) for _ in range(shared.count)] if shared else [""]
    rows = []
    for _ in range(count):
        own = "".join(draw.choices(words, k=drawn(traffic.input_tokens, draw)))
        rows.append({"prompt": (draw.choice(prefixes) + own).strip(), "output_tokens": drawn(traffic.output_tokens, draw)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def drawn(lengths: LengthDistribution | None, draw: random.Random) -> int:
    """One length. Exits for a distribution that is neither fixed nor uniform."""
    if lengths is not None and lengths.exactly is not None:
        return lengths.exactly
    if lengths is not None and lengths.uniform is not None:
        return draw.randint(*lengths.uniform)
    raise SystemExit("The study's traffic is neither of fixed nor of uniform length, so bench serve is not given the same here.")


def offered(load: Load, options: HttpOptions, found: StudyResults, one: Candidate) -> int:
    """Requests that fill warm-up and window at this level."""
    seconds = options.window.warm_up_s + options.window.measure_s + 5.0
    if load.request_rate is not None:
        return math.ceil(load.request_rate * seconds)
    level = f"requests_per_s @ concurrency={load.concurrency}"
    return math.ceil(found.mean(one, found.objective(level)) * seconds) + (load.concurrency or 0)


def bench_serve(python: str, session: Session, prompts: Path, load: Load, count: int) -> Mapping[str, list[float]]:
    """`bench serve`'s own record of one level."""
    rate = load.request_rate
    return BenchServe(
        url=str(session.endpoint),
        model=session.model,
        tokenizer=session.model_folder or session.model,
        prompts=prompts,
        requests=count,
        pace=("--request-rate", rate) if rate else ("--max-concurrency", load.concurrency or 0),
        python=python,
    ).run()


def figures(report: Mapping[str, list[float]], warm_up_s: float, measure_s: float) -> dict[str, float]:
    """The metrics over the window: rates of the tokens that came in it, latencies of the requests that began in it."""
    starts = np.array(report["start_times"])
    ttfts = np.array(report["ttfts"])
    begin = starts.min() + warm_up_s
    tokens, chunks = 0.0, list[float]()
    for start, ttft, gaps, count in zip(starts, ttfts, report["itls"], report["output_lens"], strict=True):
        times = start + ttft + np.concatenate([[0.0], np.cumsum(gaps)])  # type: ignore[arg-type]
        inside = np.count_nonzero((times >= begin) & (times < begin + measure_s))
        tokens += inside * count / len(times)
        chunks.append((sum(gaps) / max(1, count - 1)) * 1000)  # type: ignore[arg-type]
    mine = (starts >= begin) & (starts < begin + measure_s)
    latency = {"ttft_ms": ttfts[mine] * 1000, "tpot_ms": np.array(chunks)[mine]}
    asked = [metric.partition(".p") for metric in METRICS if "." in metric]
    return {
        "output_tokens_per_s": tokens / measure_s,
        **{f"{name}.p{q}": float(np.percentile(latency[name], int(q))) for name, _, q in asked},
    }


def line(found: StudyResults, one: Candidate, metric: str, level: str, theirs: float) -> str:
    """One row of the table: the study's estimate with the interval for one more launch, and the other client's figure."""
    objective = found.objective(f"{metric} @ {level}")
    samples, noise = one.samples(objective), found.noise(objective)
    mean = found.mean(one, objective)
    if noise is None or not noise.logarithmic:
        return f"| {metric} @ {level} | {mean:.4g} | {theirs:.4g} | {theirs / mean:.3f} | no interval: nothing was measured twice |"
    margin = noise.margin(len(samples), 1)
    low, high = mean * math.exp(-margin), mean * math.exp(margin)
    agrees = "yes" if low <= theirs <= high else "NO"
    return f"| {metric} @ {level} | {mean:.4g} [{low:.4g}, {high:.4g}] | {theirs:.4g} | {theirs / mean:.3f} | {agrees} |"


def measured(arguments: argparse.Namespace, found: StudyResults, one: Candidate, folder: Path) -> list[str]:
    """Launch the configuration afresh and measure every level; rows of the table."""
    made = plans.read(arguments.store / found.name / "study.yaml", arguments.store)
    options = made.workload.options
    assert isinstance(options, HttpOptions), "Only a study of HTTP traffic can be measured by bench serve."
    configuration = one.records[0].configuration
    engine = made.engines[configuration.engine]
    context = Context(
        study=found.name, trial=one.trial, tag=make_tag(folder, "remeasure", 0), folder=folder, scratch=folder, cache=made.cache
    )
    rows = []
    with engine.open(engine.launch(configuration, context).within(context), context) as session:
        session.wait_ready()
        for index, load in enumerate(options.load):
            level = ",".join(f"{name}={value:g}" for name, value in load.level.items())
            count = offered(load, options, found, one)
            write_prompts(folder / "prompts.jsonl", options, session, count, arguments.seed + index)
            session.reset_caches()
            report = bench_serve(arguments.vllm, session, folder / "prompts.jsonl", load, count)
            theirs = figures(report, options.window.warm_up_s, options.window.measure_s)
            rows += [line(found, one, metric, level, theirs[metric]) for metric in METRICS]
            print(*rows[-len(METRICS) :], sep="\n", file=sys.stderr, flush=True)
    return rows


def page(found: StudyResults, one: Candidate, rows: Sequence[str]) -> str:
    """The table with where it comes from."""
    values = ", ".join(f"{name}={value}" for name, value in one.records[0].configuration.values.items()) or "the default"
    return "\n".join(
        [
            f"# Study {found.name}, trial {one.trial}, measured again by `bench serve`",
            "",
            f"{datetime.date.today()}; {one.records[0].configuration.engine}: {values}; {len(one.records)} runs in the study.",
            "",
            "| figure | study [95 % of one more launch] | bench serve | ratio | agrees |",
            "|---|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--store", type=Path, default=Path(".autotune"))
    parser.add_argument("--trial", type=int)
    parser.add_argument("--vllm", default=sys.executable, help="interpreter of an environment with vLLM")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    try:
        found = results.load(arguments.study, arguments.store)
        one = found.candidate(found.best(found.objective_names[0]) if arguments.trial is None else arguments.trial)
    except AutotuneError as error:
        raise SystemExit(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        text = page(found, one, measured(arguments, found, one, Path(folder)))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
