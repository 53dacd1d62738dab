"""The live comparison of benchmarks/live_ab.py many times over, on a surface fitted to what its studies measured on an H200.

    python benchmarks/search/live_replay.py --seeds 40 --out benchmarks/results/live_replay.md

A launch of ours finds the rate up to which its configuration keeps the SLO, one of plain TPE only whether it keeps a fixed one.
Each costs what it cost live, where two of TPE's cost one of ours. Trials run one after the other and to their ends; what a
study's front is truly worth is the surface's word, not its own.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from compare import Course, interval
from page import keep

from autotune import pareto, results, spaces
from autotune import study as studies
from autotune.engines._recorded.recording import load
from autotune.engines._recorded.regression import NUGGETS, Regression
from autotune.engines.recorded import DEFAULT_RECORDING
from autotune.feasibility.ladder import Known, Ladder
from autotune.feasibility.memory import MemoryModel
from autotune.score import Score
from autotune.search import Driver, grid
from autotune.search.prior import Roofline, pick
from autotune.selection import Selection
from autotune.space import Space
from autotune.study import Search, Study
from autotune.trial import Configuration, Measured, Measurement, TrialRecord, Value
from autotune.workloads.base import RequestShape

ROOT = Path(__file__).parents[2]
CLIMBS = ("h200-ab-ours", "h200-ab-front-1", "h200-ab-front-2", "h200-ab-front-3", "h200-ab-front-4")
FIXED, FIXED_RATE = "h200-ab-tpe", 36.0
MINUTES = (10, 20, 30, 45)
LEFT = 0.77
"""What a climb that leaves surely broken rates takes of one that does not (benchmarks/results/climb.md)."""
NOISE = 0.03
"""Between launches of one configuration, of the rate that kept the SLO (studies/results/h200-live-ab)."""
SAMPLE = 4000
WAYS: tuple[pareto.Direction, ...] = ("maximize", "minimize")
REFERENCE = pareto.Reference((0.0, 142.0))


class Launch(NamedTuple):
    """A configuration, the rate up to which it keeps the SLO, and its peak memory in GiB."""

    values: dict[str, Value]
    rate: float
    memory_gib: float


@dataclass(frozen=True)
class World:
    """The surface and what a search on it needs to know."""

    study: Study
    space: Space
    resolved: dict[str, Value]
    model: MemoryModel
    rates: Regression
    excess: Regression
    """Of peak memory over the share of the card that the engine may take: graphs and the like come on top."""

    def truth(self, configuration: Configuration) -> tuple[float, float]:
        """Requests/s within the SLO, and peak memory."""
        full = {**self.resolved, **configuration.values}
        point = features(self.model, full)
        rate, excess = (math.exp(float(each.predict(point)[0])) for each in (self.rates, self.excess))
        return rate, excess * (self.model.need(full).budget_gib or 0.0)

    @functools.cached_property
    def best(self) -> float:
        """The most hypervolume that a large sample of the space holds."""
        generator = np.random.default_rng(0)
        drawn = (self.space.decode(grid.draw(self.space, generator)) for _ in range(SAMPLE))
        return volume([self.truth(one) for one in drawn])


def features(model: MemoryModel, full: dict[str, Value]) -> np.ndarray:
    """Scaled so that one unit is about one noticeable step: sequences together, graphs, chunk, block, cache, prefix caching."""
    tokens = max(1.0, model.need(full).kv_tokens)
    together = min(float(full["max_num_seqs"]), tokens / 640, 256.0)
    return np.array(
        [
            math.log2(max(1.0, together)),
            math.log2(min(float(full["max_cudagraph_capture_size"]), float(full["max_num_seqs"]))),
            0.5 * math.log2(float(full["max_num_batched_tokens"])),
            (math.log2(float(full["block_size"])) - 4) / 6,
            0.3 * math.log2(tokens),
            2.0 * bool(full["enable_prefix_caching"]),
        ]
    )


def climbed() -> list[Launch]:
    """Launches whose climb found a rate."""
    tables = [
        (record.configuration.values, record.measurement.totals)
        for name in CLIMBS
        for record in results.read(ROOT / "studies/results" / name).records
        if record.measurement is not None
    ]
    return [
        Launch(dict(values), totals["slo_request_rate"], totals["peak_gpu_memory_gib"])
        for values, totals in tables
        if "slo_request_rate" in totals
    ]


def broken() -> list[Launch]:
    """Launches that broke the SLO at the fixed rate: what an engine finishes that drowns is about what it serves."""
    found = results.read(ROOT / "studies/results" / FIXED)
    launches = []
    for record in found.records:
        score, table = found.score(record), record.measurement
        if score is not None and table is not None and not score.feasible:
            finished = table.rows[0].metrics["requests_per_s"]
            launches.append(
                Launch(dict(record.configuration.values), min(finished, FIXED_RATE), table.totals["peak_gpu_memory_gib"])
            )
    return launches


@functools.cache
def measured() -> Sequence[Launch]:
    """All that the surface is fitted to."""
    return (*climbed(), *broken())


@functools.cache
def world() -> World:
    study, text = studies.load(ROOT / "studies/h200/ab-ours.yaml")
    choice = Selection("vllm", study, text, study.engine[0]["fixed"], spaces.load, ("vllm",))
    space = choice.build()
    if choice.mistakes:
        raise SystemExit(str(choice.mistakes[0]))
    resolved = dict(results.read(ROOT / "studies/results/h200-ab-ours").record(0).effective)
    model = load(DEFAULT_RECORDING).memory()
    launches = measured()
    inputs, rates = table(model, resolved, launches)
    excess = np.log([[one.memory_gib / (model.need({**resolved, **one.values}).budget_gib or 1.0)] for one in launches])
    fits = (Regression.fit(inputs, targets, NUGGETS) for targets in (rates, excess))
    return World(study, Space([space]), resolved, model, *fits)


def table(model: MemoryModel, resolved: dict[str, Value], launches: Sequence[Launch]) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.array([features(model, {**resolved, **one.values}) for one in launches])
    return inputs, np.log([[one.rate] for one in launches])


def errors(at: World) -> str:
    """How far the surface is off where all launches of a configuration are left out."""
    launches = measured()
    inputs, targets = table(at.model, at.resolved, launches)
    missed, plain = [], []
    for row, target in zip(inputs, targets[:, 0], strict=True):
        rest = ~np.all(np.isclose(inputs, row), axis=1)
        missed.append(math.exp(Regression.fit(inputs[rest], targets[rest], NUGGETS).predict(row)[0] - target) - 1)
        plain.append(math.exp(float(targets[rest].mean()) - target) - 1)
    median = statistics.median(map(abs, missed))
    far, plainly = (math.sqrt(statistics.fmean(one**2 for one in each)) for each in (missed, plain))
    return (
        f"Where a configuration is left out, the surface misses its rate by {median:.0%} (median; root mean square {far:.0%}, and "
        f"{plainly:.0%} if the mean of all others is answered); {len(launches)} launches."
    )


def volume(points: Sequence[tuple[float, float]]) -> float:
    return pareto.hypervolume(points, WAYS, REFERENCE)


def run(at: World, driver: Driver, each_minutes: float, rate: float | None, seed: int) -> Course:
    """A study of 45 GPU-minutes; with a `rate` a launch tells only whether it kept the SLO there."""
    generator = np.random.default_rng(seed)
    worth: list[float] = []
    claims: list[tuple[float, ...]] = []
    truths: list[tuple[float, float]] = []
    while len(worth) * each_minutes < MINUTES[-1]:
        proposal = driver.ask()
        if proposal is None:
            break
        if proposal.duplicate_of is not None:
            continue
        true, memory = at.truth(proposal.configuration)
        capacity, arrived = true * np.exp(generator.normal(0, NOISE, 2))
        kept = rate is None or capacity >= rate
        goodput = float(capacity) if rate is None else float(rate * arrived / true) * kept
        told = Score(values=(goodput, memory), violations=() if rate is None else (-0.5,) if kept else (float(rate / capacity),))
        outcome = Measured(measurement=Measurement(rows=(), totals={"slo_goodput_per_s": goodput, "peak_gpu_memory_gib": memory}))
        fields = proposal.model_dump(include={"number", "configuration", "origin", "point"})
        driver.tell(TrialRecord(**fields, outcome=outcome), told)
        if kept:
            claims.append((goodput, memory))
            truths.append((true, memory))
        worth.append(volume([truths[index] for index in pareto.front(claims, WAYS)]) / at.best if claims else 0.0)
    ends = tuple(each_minutes * number for number in range(1, len(worth) + 1))
    return Course(ends, tuple(worth), (False,) * len(worth))


def driven(at: World, seed: int, bounds: Sequence[str], prior: str | None, **search: object) -> Driver:
    """A driver as a study has it, its roofline knowing everything or the memory alone."""
    shape = RequestShape(input_tokens=512, output_tokens=128, concurrency=256)
    roofline = Roofline(at.model, "NVIDIA H200", shape, at.resolved)
    ladder = Ladder(at.space, {"vllm": Known(resolved=at.resolved, memory=at.model)})

    def predict(one: Configuration) -> dict[str, float]:
        said = roofline.predict(one)
        # As it was: what is not known counted for nothing, so that the least memory came first.
        return {**said, "slo_goodput_per_s": 1.0} if prior == "memory" and said else said

    goals = at.study.objectives
    return Driver(
        at.space,
        WAYS,
        bounds,
        Search(seed=seed, warm_start=False, **search),  # type: ignore[arg-type]
        resolved={"vllm": at.resolved},
        feasible=ladder.feasible,
        learn=ladder.learn,
        prior=(lambda pool, begun: pick(predict, goals, pool, begun)) if prior else None,
    )


@functools.cache
def costs() -> tuple[float, float, float]:
    """GPU-minutes of a launch: of ours as it ran, of ours that leaves broken rates, of TPE at one rate."""
    ours, tpe = (
        [one for one in results.read(ROOT / "studies/results" / name).records if one.measurement is not None]
        for name in (CLIMBS[0], FIXED)
    )
    start, climb = (statistics.median(one.seconds[phase] for one in ours) / 60 for phase in ("start", "measure"))
    return start + climb, start + LEFT * climb, statistics.median(one.gpu_minutes for one in tpe)


def arms() -> dict[str, Callable[[World, int], Course]]:
    as_it_ran, leaving, fixed = costs()

    def ours(prior: str | None, minutes: float) -> Callable[[World, int], Course]:
        return lambda at, seed: run(at, driven(at, seed, (), prior), minutes, None, seed)

    def tpe(rate: float) -> Callable[[World, int], Course]:
        plain = {"sampler": "optuna.samplers:TPESampler", "startup_trials": 0, "baseline_every": 0}
        return lambda at, seed: run(at, driven(at, seed, ("slo",), None, **plain), fixed, rate, seed)

    return {
        "ours": ours("roofline", leaving),
        "ours, no prior": ours(None, leaving),
        "ours, as it ran live": ours("memory", as_it_ran),
        "TPE at 36 requests/s, as it ran live": tpe(36.0),
        "TPE at 24 requests/s": tpe(24.0),
        "TPE at 44 requests/s": tpe(44.0),
    }


def seed_of_all(seed: int) -> dict[str, Course]:
    """A seed's study with each arm."""
    warnings.simplefilter("ignore")
    at = world()
    return {name: arm(at, seed) for name, arm in arms().items()}


def body(found: Sequence[dict[str, Course]]) -> list[str]:
    marks = [f"at {minutes} GPU-minutes" for minutes in MINUTES]
    lines = ["| arm | " + " | ".join(marks) + " | least at the end | launches |", "|---|" + "---:|" * (len(MINUTES) + 2)]
    for name in found[0]:
        courses = [each[name] for each in found]
        shares = [[course.at(minutes) for course in courses] for minutes in MINUTES]
        launches = statistics.fmean(len(course.minutes) for course in courses)
        cells = [*map(interval, shares), f"{min(shares[-1]):.3f}", f"{launches:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| ours minus | " + " | ".join(marks) + " |", "|---|" + "---:|" * len(MINUTES)]
    for name in [name for name in found[0] if name != "ours"]:
        gaps = (interval([each["ours"].at(minutes) - each[name].at(minutes) for each in found]) for minutes in MINUTES)
        lines.append(f"| {name} | {' | '.join(gaps)} |")
    return [
        *lines,
        "",
        "Shares of the most hypervolume that the surface holds, with 95 % bootstrap intervals over seeds. " + errors(world()),
        "",
        "The roofline and the surface share what they look at (sequences together, graphs, the cache), which favours an arm with a "
        "prior; `ours, no prior` is free of that. Live, both arms ran three trials at once, and ours ended two of them early.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with ProcessPoolExecutor(given.workers) as pool:
        found = list(pool.map(seed_of_all, range(given.seeds)))
    about = ", ".join(f"{minutes:.2f}" for minutes in costs())
    about = f"{given.seeds} seeds; GPU-minutes a launch of ours as it ran, of ours, and of TPE: {about}."
    keep("The live comparison, replayed", about, body(found), given.out)


if __name__ == "__main__":
    main()
