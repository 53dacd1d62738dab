"""A fixed number of requests without warm-up or window, as other clients run them: for comparing clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from autotune.workloads._load.conduct import LEAD_S, health_of
from autotune.workloads._load.crew import Crew
from autotune.workloads._load.options import HttpOptions
from autotune.workloads._load.plans import Target, client_count, level_plans, pieces
from autotune.workloads._load.summary import ClientHealth


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of all requests, and how the clients kept up."""

    records: Sequence[Mapping[str, Any]]
    client: ClientHealth


def run_fixed(options: HttpOptions, endpoint: str, model: str, requests: int, seed: int = 0) -> Batch:
    """Send so many requests at the first load of the options, and wait for all of them."""
    load = options.load[0]
    vocabulary = pieces(options, Path(model))
    plans = level_plans(options, load, Target(endpoint, model), vocabulary, seed)
    with Crew(client_count(options), "fixed") as crew:
        crew.order([{"do": "level", **plan, "requests": requests} for plan in plans])
        crew.collect("prepared")
        crew.order({"do": "go", "start": perf_counter() + LEAD_S})
        over = [0] * crew.clients
        while sum(over) < requests:
            for worker, message in crew.poll(1.0):
                if "finished" in message:
                    over[worker] = message["finished"] + message["failed"]
        crew.order({"do": "end"})
        ends = crew.collect("requests")
    return Batch([record for end in ends for record in end["requests"]], health_of(ends))
