"""What it gains that a climb leaves a rate which has surely broken its SLO, and whether it finds the same rate.

    python benchmarks/climb.py [--rounds 4] [--python .venvs/vllm/bin/python] [--model synthetic:tiny] [--fixed '{...}']
                               [--env '{}'] [--start 4] [--slo "ttft_ms.p95 <= 500"] [--max-steps 5] [--warm-up-s 4] [--measure-s 8]

One server; climbs in turns, each once to the end of every window and once as a trial of the search does it. Both climbs of a
round meet the same arrivals.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

from one_server import served

from autotune import engines
from autotune.bar import Bar, Spread
from autotune.engines.base import Context
from autotune.score import Objective, Selector
from autotune.session import Session
from autotune.stats import t_quantile
from autotune.workloads.http import HttpOptions, HttpWorkload

WHOLE, LEFT = "every window whole", "left once surely broken"
# A bar over which every trial comes: it only says that the trial may be ended early, and what its study asks for.
BAR = Bar(
    objectives=(Objective(selector=Selector.parse("slo_request_rate"), direction="maximize"),),
    constraints=(),
    front=(),
    nadir=(),
    spreads=(Spread(deviation=0.05, freedom=4),),
)


def options(arguments: argparse.Namespace) -> HttpOptions:
    """The workload's section."""
    low, high, shortest, longest = arguments.tokens
    climb = {"constraints": arguments.slo, "start": arguments.start, "max_steps": arguments.max_steps}
    section = {
        "kind": "http",
        "traffic": {"input_tokens": {"uniform": [low, high]}, "output_tokens": {"uniform": [shortest, longest]}},
        "load": [{"slo_climb": climb}],
        "window": {"warm_up_s": arguments.warm_up_s, "measure_s": arguments.measure_s, "deadline_s": arguments.deadline_s},
    }
    return HttpOptions.model_validate(section)


def climbed(workload: HttpWorkload, session: Session, context: Context) -> Mapping[str, float]:
    """One climb: its seconds, steps, and the rate that it found."""
    began = perf_counter()
    found = workload.run(session, context, lambda label, share: None)
    left = sum(not row.metrics for row in found.rows)
    return {"seconds": perf_counter() - began, "steps": len(found.rows), "left": left, "rate": found.totals["slo_request_rate"]}


def report(runs: Mapping[str, list[Mapping[str, float]]]) -> None:
    """Means, and the ratios of the pairs with a t interval of 95 %."""
    print("| climb | seconds | steps | of them left | rate found, by round |")
    print("|---|---:|---:|---:|---|")
    for name, found in runs.items():
        means = [statistics.fmean(one[figure] for one in found) for figure in ("seconds", "steps", "left")]
        rates = ", ".join(f"{one['rate']:.3g}" for one in found)
        print(f"| {name} | {means[0]:.1f} | {means[1]:.1f} | {means[2]:.1f} | {rates} |")
    for figure in ("seconds", "rate"):
        logs = [math.log(after[figure] / before[figure]) for before, after in zip(runs[WHOLE], runs[LEFT], strict=True)]
        half = t_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, middle, high = (math.exp(statistics.fmean(logs) + by) for by in (-half, 0.0, half))
        print(f"\n{figure}: {middle:.3f} times as with whole windows, 95 % interval {low:.3f} to {high:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, choices=range(2, 101), metavar="2..100")
    parser.add_argument("--kind", default="vllm")
    parser.add_argument("--python", type=Path)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--fixed", type=json.loads, default={"max_model_len": 1024, "enforce_eager": True})
    parser.add_argument("--env", type=json.loads, default={})
    parser.add_argument("--start", type=float, default=4.0)
    parser.add_argument("--slo", nargs="+", default=["ttft_ms.p95 <= 500"])
    parser.add_argument("--max-steps", type=int, default=5)
    parser.add_argument("--tokens", type=json.loads, default=[48, 144, 16, 48], help="input from, to, output from, to")
    parser.add_argument("--warm-up-s", type=float, default=4.0)
    parser.add_argument("--measure-s", type=float, default=8.0)
    parser.add_argument("--deadline-s", type=float, default=20.0)
    arguments = parser.parse_args()
    kind, workload = engines.get(arguments.kind), HttpWorkload(options(arguments))
    section = {"kind": arguments.kind, "model": arguments.model, "fixed": arguments.fixed, "env": arguments.env}
    engine = kind(kind.Options.model_validate({**section, "python": arguments.python}))
    runs: dict[str, list[Mapping[str, float]]] = {WHOLE: [], LEFT: []}
    *cores, own = sorted(os.sched_getaffinity(0))
    with served(engine, "climb", tuple(cores)) as (session, context):
        # A client that shares the engine's cores is late, and no climb is valid.
        os.sched_setaffinity(0, {own})
        for seed in range(-1, arguments.rounds):
            for how, bar in ((WHOLE, None), (LEFT, BAR)):
                found = climbed(workload, session, context.model_copy(update={"seed": seed + 1, "bar": bar}))
                # The first round warms the engine up.
                if seed >= 0:
                    runs[how].append(found)
    identity = engine.identity()
    print(f"{datetime.date.today()}  {identity}  {os.cpu_count()} cores  {arguments}\n")
    report(runs)


if __name__ == "__main__":
    main()
