"""TPE that passes over what was tried, beside TPE as Optuna has it, in our driver on recorded surfaces.

    python benchmarks/search/unrepeated.py --seeds 40 --out benchmarks/results/unrepeated.md

All arms are `ours` of compare.py in everything else, with the same seeds, noise and minutes. As it comes, TPE is asked again up
to four times when it proposes what was run, after which chance proposes.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from compare import REACHED, Course, study
from fresh import FreshTPE
from page import keep
from surfaces import Task, own, tasks

from autotune.engines._recorded.noise import UNKNOWN_NOISE
from autotune.search.candidates import REASKS, Candidates
from autotune.space import Point
from autotune.stats import bootstrap_interval

MINUTES = (10, 20, 30, 45, 60)
TRIALS = (30, 60, 100)
SPANS = ((10, 30), (30, 60), (60, 100))
ENOUGH = 200
"""Simulated minutes of a study; the page says how many launches the shortest had in them."""
MODEL: Mapping[str, Any] = {"multivariate": True, "group": False, "n_startup_trials": 1}
"""What our policy sets of TPE on a space without conditions."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "as it comes": {},
    "passing over": {"sampler": "fresh:FreshTPE", "options": MODEL},
    "passing over, 96 candidates": {"sampler": "fresh:FreshTPE", "options": {**MODEL, "n_ei_candidates": 96}},
}


class Taken(NamedTuple):
    """A study, and from which attempt each proposal of the search was taken."""

    course: Course
    attempts: list[int]


def all_three(task: Task, prior: bool, seed: int) -> list[Taken]:
    """A seed's study with each of the arms."""
    warnings.simplefilter("ignore")
    noise = None if task.data.endswith(".jsonl") else UNKNOWN_NOISE
    found = []
    for search in ARMS.values():
        attempts, arm = followed(), Ours(task, seed, prior=prior, **search)
        FreshTPE.driver = arm.driver
        found.append(Taken(study(task, arm, ENOUGH, seed, noise), attempts))
    return found


def followed() -> list[int]:
    """Holds the attempt at which each proposal of the search was taken from now on."""
    taken: list[int] = []

    def points(self: Candidates, number: int, *given: Any) -> Iterator[tuple[int, Point]]:
        found = _points(self, number, *given)
        for index, (attempt, point) in enumerate(found):
            taken[-1 if index else len(taken) :] = [attempt if number >= self._search.startup_trials else 0]
            yield attempt, point

    Candidates.points = points
    return taken


_points = Candidates.points


def rows(name: str, results: Sequence[Sequence[Taken]]) -> list[str]:
    """A line for each mark: the mean of TPE as it comes, and what the other arms differ by, paired."""
    courses = [[taken.course for taken in one] for one in results]
    values = [(f"{mark} min", [[each.at(mark) for each in one] for one in courses]) for mark in MINUTES]
    values += [(f"{mark} trials", [[reached(each, mark) for each in one] for one in courses]) for mark in TRIALS]
    lines = []
    for mark, found in values:
        plain, *others = np.array(found).T
        lines.append(f"| {name} | {mark} | {plain.mean():.4f} | " + " | ".join(interval([*(one - plain)]) for one in others) + " |")
    return lines


def interval(values: Sequence[float]) -> str:
    found = bootstrap_interval(values, lambda sample: float(np.mean(sample)), seed=0)
    return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def reached(course: Course, trials: int) -> float:
    return course.volumes[min(trials, len(course.volumes)) - 1]


def chance(taken: Sequence[Taken]) -> list[str]:
    """The share of proposals that came by chance, between the marks."""
    shares = [np.mean([attempt >= REASKS for one in taken for attempt in one.attempts[low:high]]) for low, high in SPANS]
    return [f"{share:.0%}" for share in shares]


def median_minutes(courses: Sequence[Course]) -> str:
    return f"{np.median([one.reaches(REACHED) for one in courses]):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], metavar="SURFACE")
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kinds = [(task, not given.no_prior) for task in (*tasks(), *own()) if not given.only or task.name in given.only]
    table, shares, launches = list[str](), list[str](), list[int]()
    with ProcessPoolExecutor(given.processes) as pool:
        for task, prior in kinds:
            name = task.name if prior else f"{task.name}, no prior"
            results = list(pool.map(partial(all_three, task, prior), range(given.seeds)))
            table += rows(name, results)
            launches += [len(taken.course.volumes) for one in results for taken in one]
            for arm, taken in zip(ARMS, zip(*results, strict=True), strict=True):
                minutes = median_minutes([one.course for one in taken])
                shares.append(f"| {name} | {arm} | " + " | ".join([*chance(taken), minutes]) + " |")
            print("\n".join([*table[-8:], *shares[-3:]]), file=sys.stderr, flush=True)
    heads = " | ".join(f"trials {low} to {high}" for low, high in SPANS)
    body = [
        "| surface | after | TPE " + " | ".join([*ARMS][:1] + [f"{one}, difference" for one in [*ARMS][1:]]) + " |",
        "|---" * (2 + len(ARMS)) + "|",
        *table,
        "",
        "The share of proposals that chance made, and the median minutes to 95 %:",
        "",
        f"| surface | TPE | {heads} | minutes to {REACHED:.0%} |",
        "|---" * 6 + "|",
        *shares,
    ]
    about = (
        f"Python {platform.python_version()}, optuna {optuna.__version__}; {given.seeds} paired seeds a surface; share of the "
        "surface's best hypervolume, mean of the seeds, differences with 95 % bootstrap intervals. "
        f"{ENOUGH} simulated minutes a study; the shortest had {min(launches)} launches."
    )
    keep("TPE that passes over what was tried", about, body, given.out)


if __name__ == "__main__":
    main()
