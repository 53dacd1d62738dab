"""Staged search, one group of parameters after the other, against joint search at equal budgets.

    python benchmarks/search/staged.py --seeds 20 --out benchmarks/results/staged.md

Two kinds of surface. Training: a lattice of real GRPO runs, each measured with two seeds; a simulated trial returns one of the
two and is judged by their mean, and nothing between the points exists. Serving: the surfaces recorded on an H200, with
their own noise, judged by their noise-free values. Both strategies are told the same and begin at the same default.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Task, best, tasks
from surfaces import space as serving_space

from autotune.parameters import ValuesParameter
from autotune.score import Score
from autotune.search import Driver, grid
from autotune.space import EngineSpace, Space
from autotune.stats import bootstrap_interval
from autotune.study import Search
from autotune.trial import Configuration, Measured, Measurement, Origin, TrialRecord, digest_of

LATTICE = Path(__file__).parents[1] / "data" / "trl-grpo-lattice.jsonl"
MARKS = {"training": (4, 8, 12, 16), "serving": (10, 20, 30)}
"""Budgets in trials at which the strategies are compared, the default's trial among them."""
Strategy = Literal["joint", "staged"]


@dataclass(frozen=True)
class Lattice:
    """Real runs at every point of a small space: `cells` holds the reward and the samples per second of each seed."""

    space: Space
    cells: Mapping[str, tuple[tuple[float, float], ...]]

    @classmethod
    def read(cls, file: Path) -> Lattice:
        """Out of what `lattice.py` recorded. Raises ValueError when a point was not measured."""
        runs = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        names = list(runs[0]["values"])
        parameters = {name: ValuesParameter(kind="values", values=sorted({run["values"][name] for run in runs})) for name in names}
        space = Space([EngineSpace(engine="trl", parameters=parameters)])
        cells: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            cells.setdefault(Configuration(engine="trl", values=run["values"]).digest, []).append((run["reward"], run["sps"]))
        wanted = [space.decode(point) for point in grid.points(space)]
        missing = [one for one in wanted if one.digest not in cells]
        if missing:
            raise ValueError(f"{len(missing)} of {len(wanted)} points of {file} were not measured, {missing[0].values} first.")
        return cls(space, {one.digest: tuple(cells[one.digest]) for one in wanted})

    def drawn(self, configuration: Configuration, seed: int, trial: int) -> tuple[float, float]:
        """What a trial measures: one of the cell's real runs."""
        runs = self.cells[configuration.digest]
        return runs[int(digest_of([seed, trial]), 16) % len(runs)]

    def reward(self, configuration: Configuration) -> float:
        """The mean over the seeds."""
        return float(np.mean([reward for reward, _ in self.cells[configuration.digest]]))

    def about(self) -> str:
        """What the rewards look like, in a sentence or two."""
        rewards = sorted(float(np.mean([reward for reward, _ in runs])) for runs in self.cells.values())
        spread = np.mean([abs(runs[0][0] - runs[1][0]) for runs in self.cells.values()])
        return (
            f"Training, {len(rewards)} real GRPO runs of two seeds each (`benchmarks/data/{LATTICE.name}`): true reward of the "
            f"configuration that the search would name, over the lattice's best. Rewards there go from {rewards[0]:.2f} over a "
            f"median of {rewards[len(rewards) // 2]:.2f} to {rewards[-1]:.2f}; two seeds of one point differ by {spread:.2f}."
        )


def training(lattice: Lattice, strategy: Strategy, trials: int, seed: int) -> list[float]:
    """True reward of the best trial so far, as the search itself would name it, over the best of the lattice."""
    start = {name: options[0] for name, options in _options(lattice.space).items()}
    search = Search(seed=seed, strategy=strategy, startup_trials=4)
    driver = Driver(lattice.space, ("maximize", "maximize"), (), search, resolved={"trl": start})
    top = max(lattice.reward(lattice.space.decode(point)) for point in grid.points(lattice.space))
    course, named, told = list[float](), 0.0, -np.inf
    for trial in range(trials):
        proposal = driver.ask()
        assert proposal is not None
        configuration = proposal.configuration.model_copy(update={"values": {**start, **proposal.configuration.values}})
        values = lattice.drawn(configuration, seed, trial)
        origin = Origin.DEFAULT if trial == 0 else Origin.SEARCH
        outcome = Measured(measurement=Measurement(rows=()))
        fields = proposal.model_dump(include={"number", "configuration", "point"})
        driver.tell(TrialRecord(**fields, origin=origin, outcome=outcome), Score(values=values, violations=()))
        if values[0] > told:
            told, named = values[0], lattice.reward(configuration)
        course.append(named / top)
    return course


def _options(space: Space) -> Mapping[str, Sequence[float]]:
    """Values of every parameter, the most careful first: a low learning rate, a small batch, two answers to a prompt."""
    return {
        name: sorted({space.decode(point).values[name] for point in grid.points(space)})
        for name, _ in space.engines["trl"].sampled()
    }


def serving(task: Task, strategy: Strategy, prior: bool, trials: int, seed: int) -> list[float]:
    """True hypervolume of what was run, over the best of the surface."""
    arm, points, course = Ours(task, seed, prior=prior, strategy=strategy), list[tuple[float, ...]](), list[float]()
    for trial in range(trials):
        configuration = arm.ask()
        if configuration is not None:
            arm.tell(configuration, task.run(configuration, trial, seed, 0.03))
            truth = task.truth(configuration)
            points += [truth.values] if truth is not None and truth.feasible else []
        course.append(task.volume(points) / best(task).volume)
    return course


def table(courses: Mapping[str, Sequence[Sequence[float]]], marks: Sequence[int]) -> list[str]:
    """Means at each budget, and joint minus each other strategy with a bootstrap interval over the seeds."""
    lines = ["| strategy | " + " | ".join(f"{mark} trials" for mark in marks) + " |", "|---" * (len(marks) + 1) + "|"]
    for name, paths in courses.items():
        lines.append(f"| {name} | " + " | ".join(f"{np.mean([path[mark - 1] for path in paths]):.3f}" for mark in marks) + " |")
    for name, paths in courses.items():
        if name != "joint":
            pairs = list(zip(courses["joint"], paths, strict=True))
            cells = [interval([one[mark - 1] - other[mark - 1] for one, other in pairs]) for mark in marks]
            lines.append(f"| joint minus {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def interval(values: Sequence[float]) -> str:
    found = bootstrap_interval(values, lambda sample: float(np.mean(sample)), seed=0)
    return f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def everything(seeds: int, arms: Mapping[str, Callable[[int], list[float]]]) -> dict[str, list[list[float]]]:
    return {name: [run(seed) for seed in range(seeds)] for name, run in arms.items()}


STRATEGIES: tuple[Strategy, ...] = ("joint", "staged")


def on_lattice(seeds: int) -> list[str]:
    lattice, trials = Lattice.read(LATTICE), max(MARKS["training"])
    arms = {name: partial(training, lattice, name, trials) for name in STRATEGIES}
    return [lattice.about(), "", *table(everything(seeds, arms), MARKS["training"])]


def on_serving(seeds: int) -> list[str]:
    lines, trials = list[str](), max(MARKS["serving"])
    for task in tasks():
        lines += [f"Serving, {task.name} traffic, {serving_space().size():.0f} points: hypervolume over the surface's best.", ""]
        arms = {name: partial(serving, task, name, False, trials) for name in STRATEGIES}
        arms["joint, with the roofline prior"] = partial(serving, task, "joint", True, trials)
        lines += table(everything(seeds, arms), MARKS["serving"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--surfaces", nargs="+", choices=list(MARKS), default=list(MARKS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    about = f"{given.seeds} seeds a surface; staged without groups: parameters one after the other, four trials each."
    pages = {"training": on_lattice, "serving": on_serving}
    keep("Staged against joint search", about, [line for name in given.surfaces for line in pages[name](given.seeds)], given.out)


if __name__ == "__main__":
    main()
