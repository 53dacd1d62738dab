"""Where a trial's seconds go, and what share of them is spent measuring.

    python benchmarks/trial_overhead.py [--repeats 3] [--model synthetic:tiny] [--fixed '{"max_model_len": 1024}']

Four ways to measure the same configuration at the same two load levels, in turns, on this machine:

- autotune: one launch for all levels, with the caches that trials share.
- autotune, standby: as autotune, launched in an interpreter that has imported the engine. In a study it does so while the
  trial before is measured; here nothing is measured then, and those seconds are nobody's.
- one launch a level: as autotune, but each level gets a launch of its own.
- cold launch a level: in addition nothing is shared, as with a fresh `vllm serve` for each level.

Printed: the median of every phase, seconds in all, and the share spent measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune import engines, standby, workloads
from autotune.engines.base import Context, Engine
from autotune.evaluate import evaluate
from autotune.process import make_tag
from autotune.trial import Configuration, Measured, TrialJob
from autotune.workloads.base import Workload

ATTEMPTS = 3
"""Launches tried for one measurement: a neighbour on the machine may make the load client late."""
LEVELS = ({"request_rate": 4}, {"concurrency": 16})
PHASES = ("start.imports", "start.config", "start.engine", "start.load", "start.compile", "start.kv_cache", "start.graphs",
          "start.warm_up", "start.serve", "start", "measure", "stop")  # fmt: skip


def workload(levels: Sequence[Mapping[str, int]]) -> Workload:
    """The load of a trial."""
    section = {
        "kind": "http",
        "traffic": {"input_tokens": {"uniform": [48, 144]}, "output_tokens": {"uniform": [16, 48]}},
        "load": list(levels),
        "window": {"warm_up_s": 2, "measure_s": 8, "deadline_s": 30},
    }
    found = workloads.get("http")
    return found(found.Options.model_validate(section))


def surroundings(store: Path, cache: Path, number: int) -> Context:
    """What one launch may use."""
    return Context(
        study="overhead",
        trial=number,
        tag=make_tag(store, "overhead", number),
        folder=store / str(number),
        scratch=store / f"scratch-{number}",
        cache=cache,
    )


def trial_after_import(engine: Engine, load: Workload, store: Path, cache: Path, number: int) -> dict[str, float]:
    """Seconds by phase of one launch in an interpreter that has imported the engine."""
    context, ahead = surroundings(store, cache, number), engine.ahead(cache)
    assert ahead is not None
    cores = len(os.sched_getaffinity(0))
    with standby.held(ahead, env=context.env, scratch=context.scratch, tag=context.tag, cpus=(), threads=cores) as waiting:
        assert waiting is not None and waiting.imported(300)
        return launched(engine, load, context)


def trial(engine: Engine, load: Workload, store: Path, cache: Path, number: int) -> dict[str, float]:
    """Seconds by phase of one launch."""
    return launched(engine, load, surroundings(store, cache, number))


def launched(engine: Engine, load: Workload, context: Context) -> dict[str, float]:
    """Seconds by phase of one launch with this context."""
    number = context.trial
    job = TrialJob(number=number, configuration=Configuration(engine=engine.kind))
    for _ in range(ATTEMPTS):
        record = evaluate(job, engine, load, context, lambda label, share: None)
        if isinstance(record.outcome, Measured):
            print(number, {phase: round(seconds, 1) for phase, seconds in record.seconds.items()}, file=sys.stderr, flush=True)
            return dict(record.seconds)
        print(number, record.outcome.evidence[:1], file=sys.stderr, flush=True)
    raise SystemExit(f"{ATTEMPTS} launches in a row were not measured.")


def added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by phase over several launches."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in {key for part in parts for key in part}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--fixed", type=json.loads, default={"max_model_len": 1024})
    arguments = parser.parse_args()
    found = engines.get("vllm")
    engine = found(found.Options.model_validate({"kind": "vllm", "model": arguments.model, "fixed": arguments.fixed}))
    plain = found(found.Options.model_validate({"kind": "vllm", "model": arguments.model, "fixed": arguments.fixed, "fork": False}))
    identity = engine.identity()
    ahead = found(
        found.Options.model_validate({"kind": "vllm", "model": arguments.model, "fixed": arguments.fixed, "standby": True})
    )
    runs: dict[str, list[dict[str, float]]] = {
        "autotune": [],
        "autotune, standby": [],
        "one launch a level": [],
        "cold launch a level": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        store, shared, number = Path(folder), Path(folder) / "cache", 0
        trial(engine, workload(LEVELS), store, shared, number)  # fills the shared caches, as trial 0 of a study does
        for _ in range(arguments.repeats):
            number += 10
            runs["autotune"].append(trial(engine, workload(LEVELS), store, shared, number))
            runs["autotune, standby"].append(trial_after_import(ahead, workload(LEVELS), store, shared, number + 9))
            each = [trial(engine, workload([level]), store, shared, number + 1 + index) for index, level in enumerate(LEVELS)]
            runs["one launch a level"].append(added(each))
            cold = [
                trial(plain, workload([level]), store, store / f"cold-{number}-{index}", number + 4 + index)
                for index, level in enumerate(LEVELS)
            ]
            runs["cold launch a level"].append(added(cold))
    report(identity, arguments.repeats, runs)


def report(identity: object, repeats: int, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print the table."""
    print(f"{datetime.date.today()}  {identity}  {os.cpu_count()} cores  repeats: {repeats}\n")
    print("| phase, median s | " + " | ".join(runs) + " |\n|---|" + "---|" * len(runs))
    medians = {
        way: {phase: statistics.median(run.get(phase, 0.0) for run in found) for phase in PHASES} for way, found in runs.items()
    }
    for phase in PHASES:
        if any(medians[way][phase] for way in runs):
            print(f"| {phase} | " + " | ".join(f"{medians[way][phase]:.1f}" for way in runs) + " |")
    totals = {
        way: statistics.median(sum(run[p] for p in ("start", "measure", "stop")) for run in found) for way, found in runs.items()
    }
    print("| all | " + " | ".join(f"{totals[way]:.1f}" for way in runs) + " |")
    print("| share spent measuring | " + " | ".join(f"{medians[way]['measure'] / totals[way]:.0%}" for way in runs) + " |")
    print("| seconds against autotune | " + " | ".join(f"{totals[way] / totals['autotune']:.2f}x" for way in runs) + " |")


if __name__ == "__main__":
    main()
