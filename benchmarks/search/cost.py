"""What the driver itself takes for a trial, at 100, 1,000 and 10,000 trials.

    python benchmarks/search/cost.py --trials 10000 --out benchmarks/results/driver_cost.md

Only the trials right before a mark are asked of the driver and timed; those between marks are drawn at random and told,
which leaves the driver the same history in a fraction of the time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Task, space, tasks

from autotune.ledger import Ledger
from autotune.search import grid
from autotune.trial import Origin, TrialJob, TrialRecord

MARKS = (100, 1000, 3000, 10_000)
WINDOW = 50
"""Trials before each mark over which the cost is averaged."""
Times = tuple[float, float]
"""Wall and CPU seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is written, e.g. /dev/shm to leave the disk out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    marks = [mark for mark in MARKS if mark <= given.trials]
    lines = [
        "| trial | ask CPU ms | tell CPU ms | record CPU ms | together CPU ms | together wall ms | resident MiB |",
        "|---" * 7 + "|",
    ]
    task = tasks()[0]
    arm = Ours(task, 0)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, Ledger(Path(folder) / "cost", "name: cost\n", "digest") as ledger:
        for mark in marks:
            while arm.driver.next_number < mark - WINDOW:
                drawn(arm, task, ledger, random)
            spent = np.array([asked(arm, task, ledger) for _ in range(WINDOW)])
            cpu, wall = 1000 * spent[:, :, 1].mean(axis=0), 1000 * spent[:, :, 0].mean(axis=0).sum()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            cells = [*(f"{value:.1f}" for value in (*cpu, cpu.sum(), wall)), f"{memory:.0f}"]
            lines.append(f"| {mark} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    about = (
        f"default policy, mean of the {WINDOW} trials before each mark; the recorded engine's own time is left out. "
        "Wall time exceeds CPU time by what else the machine did."
    )
    keep("What the driver costs", about, lines, given.out)


def drawn(arm: Ours, task: Task, ledger: Ledger, random: np.random.Generator) -> None:
    """A random trial, told and recorded like any other."""
    point = grid.draw(space(), random)
    number, configuration = arm.driver.next_number, space().decode(point)
    ran = task.run(configuration, number, 0, 0.03)
    record = TrialRecord(number=number, configuration=configuration, origin=Origin.SEARCH, point=point, outcome=ran.outcome)
    arm.driver.begin(number, configuration, point)
    arm.driver.tell(record, ran.score)
    ledger.record(record)


def asked(arm: Ours, task: Task, ledger: Ledger) -> tuple[Times, Times, Times]:
    """One trial of the driver's own; what ask, tell and record took."""
    start = now()
    arm.ask()
    after_ask = now()
    assert arm.proposal is not None
    ran = task.run(arm.proposal.configuration, arm.proposal.number, 0, 0.03)
    fields = arm.proposal.model_dump(include={"number", "configuration", "origin", "point"})
    record = TrialRecord(**fields, outcome=ran.outcome)
    after_run = now()
    arm.tell(record.configuration, ran)
    after_tell = now()
    ledger.begin(TrialJob(**fields, seed=0))
    ledger.record(record)
    return since(start, after_ask), since(after_run, after_tell), since(after_tell, now())


def now() -> Times:
    return time.perf_counter(), time.process_time()


def since(start: Times, end: Times) -> Times:
    return end[0] - start[0], end[1] - start[1]


if __name__ == "__main__":
    main()
