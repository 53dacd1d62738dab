"""What it gains to import the next trial's engine while the present one is measured, and whether that disturbs what is measured.

    python benchmarks/standby.py [--trials 3] [--rounds 1] [--python .venvs/vllm/bin/python] [--model synthetic:llama-3.1-8b]
                                 [--fixed '{"max_model_len": 8192}'] [--env '{}'] [--load '[{"request_rate": 30}]'] [--no-fork]

Runs the same configuration again and again through the executor that studies use, in turns without and with standby. All
trials of a turn with standby are measured while an interpreter imports beside them; all but the first are launched in one.

Printed: seconds by phase, and every measured figure side by side with its 95 % interval over the trials.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autotune import engines, executors, workloads
from autotune.engines.base import Engine
from autotune.executors.base import Site
from autotune.stats import t_quantile
from autotune.trial import Configuration, Measured, TrialJob, TrialRecord

PHASES = ("start.imports", "start.config", "start.engine", "start.workers", "start.load", "start.compile", "start.kv_cache",
          "start.graphs", "start.warm_up", "start.serve", "start", "measure", "stop")  # fmt: skip
FIGURES = ("output_tokens_per_s", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "tpot_ms.p99", "itl_ms.p99", "e2e_ms.p99")
TOTALS = ("start_s", "peak_memory_gib", "peak_gpu_memory_gib")
WITHOUT, WITH = "without standby", "with standby"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, help="trials of a turn that count")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", default="vllm")
    parser.add_argument("--python", type=Path)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--fixed", type=json.loads, default={"max_model_len": 1024})
    parser.add_argument("--env", type=json.loads, default={})
    parser.add_argument("--load", type=json.loads, default=[{"request_rate": 4}, {"concurrency": 16}])
    parser.add_argument("--tokens", type=json.loads, default=[48, 144, 16, 48], help="input from, to, output from, to")
    parser.add_argument("--measure-s", type=float, default=10.0)
    parser.add_argument("--no-fork", action="store_true")
    arguments = parser.parse_args()
    runs: dict[str, list[TrialRecord]] = {WITHOUT: [], WITH: []}
    with tempfile.TemporaryDirectory() as folder:
        turn(arguments, Path(folder), False, 0)  # fills the caches that trials share, as trial 0 of a study does
        for number in range(arguments.rounds):
            runs[WITHOUT] += turn(arguments, Path(folder), False, 100 * number + 10)
            runs[WITH] += turn(arguments, Path(folder), True, 100 * number + 50)
    identity = engine(arguments, False).identity()
    print(f"{datetime.date.today()}  {identity}  {os.cpu_count()} cores  {arguments}\n")
    report(runs)


def engine(arguments: argparse.Namespace, standby: bool) -> Engine:
    """The engine, with or without."""
    found = engines.get(arguments.kind)
    options = {"kind": arguments.kind, "model": arguments.model, "fixed": arguments.fixed, "env": arguments.env, "standby": standby}
    options |= {"python": arguments.python, "start_timeout_s": 400}
    if arguments.kind == "vllm":
        options["fork"] = not arguments.no_fork
    return found(found.Options.model_validate(options))


def turn(arguments: argparse.Namespace, store: Path, standby: bool, first: int) -> list[TrialRecord]:
    """Trials one after the other as a study runs them; the first with standby, which found nothing prepared, is left out."""
    low, high, shortest, longest = arguments.tokens
    section = {
        "kind": "http",
        "traffic": {"input_tokens": {"uniform": [low, high]}, "output_tokens": {"uniform": [shortest, longest]}},
        "load": arguments.load,
        "window": {"warm_up_s": 3, "measure_s": arguments.measure_s, "deadline_s": 40},
    }
    load = workloads.get("http")
    one = engine(arguments, standby)
    site = Site(
        engines={one.kind: one}, workload=load(load.Options.model_validate(section)), store=store, study="standby", parallel=1
    )
    records = []
    with executors.make("local", site) as executor:
        for number in range(first, first + (1 if not first else arguments.trials + standby)):
            executor.submit(TrialJob(number=number, configuration=Configuration(engine=one.kind)))
            record = None
            while record is None:
                record = executor.collect(10.0)
            assert isinstance(record.outcome, Measured), record.outcome
            start = record.outcome.measurement.facts["start"]
            said = f"start {record.seconds['start']:.1f} s, measure {record.seconds['measure']:.1f} s"
            print(f"trial {number}: {said}, standby {start.get('standby', 'none')} {start.get('standby_refused', '')}", flush=True)
            records.append(record)
    return records[1:] if standby else records


def report(runs: Mapping[str, Sequence[TrialRecord]]) -> None:
    """Print both tables."""
    print("| phase, median s | " + " | ".join(runs) + " |\n|---|" + "---:|" * len(runs))
    for phase in PHASES:
        found = [[record.seconds.get(phase) for record in records] for records in runs.values()]
        if any(value for values in found for value in values):
            print(f"| {phase} | " + " | ".join(_median(values) for values in found) + " |")
    every = [
        [sum(record.seconds[phase] for phase in ("start", "measure", "stop")) for record in records] for records in runs.values()
    ]
    print("| the whole trial | " + " | ".join(_median(values) for values in every) + " |")
    print("\n| measured, mean and 95 % interval | " + " | ".join(runs) + " | difference |\n|---|" + "---:|" * (len(runs) + 1))
    for figure in TOTALS:
        totals = [[record.measurement.totals.get(figure) for record in records if record.measurement] for records in runs.values()]
        known = [[value for value in values if value is not None] for values in totals]
        if all(known):
            print(f"| {figure} | " + " | ".join(_interval(values) for values in known) + f" | {_difference(*known)} |")
    for place in range(len(runs[WITHOUT][0].measurement.rows)):  # type: ignore[union-attr]
        level = " ".join(f"{name}={value}" for name, value in runs[WITHOUT][0].measurement.rows[place].level.items())  # type: ignore[union-attr]
        for figure in FIGURES:
            found = [_figures(records, place, figure) for records in runs.values()]
            if all(found):
                print(
                    f"| {figure} @ {level} | " + " | ".join(_interval(values) for values in found) + f" | {_difference(*found)} |"
                )


def _figures(records: Sequence[TrialRecord], place: int, figure: str) -> list[float]:
    rows = [record.measurement.rows[place] for record in records if record.measurement is not None]
    return [row.metrics[figure] for row in rows if figure in row.metrics and row.invalid is None]


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f}" if known else ""


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def _difference(before: Sequence[float], after: Sequence[float]) -> str:
    """Of the means, with Welch's interval."""
    if min(len(before), len(after)) < 2:
        return ""
    parts = [statistics.variance(values) / len(values) for values in (before, after)]
    change, spread = statistics.mean(after) - statistics.mean(before), sum(parts)
    if not spread:
        return f"{change:+.2f}"
    degrees = spread**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (before, after), strict=True))
    half = t_quantile(0.975, degrees) * math.sqrt(spread)
    return f"{change:+.2f} ± {half:.2f}, {'apart' if abs(change) > half else 'not apart'}"


if __name__ == "__main__":
    main()
