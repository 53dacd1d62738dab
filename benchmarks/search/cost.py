"""What the driver itself takes for a trial, from 100 to 10,000 trials; with `--beside`, what another checkout's takes too.

    python benchmarks/search/cost.py --trials 10000 --out benchmarks/results/driver_cost.md

Only the trials right before a mark are asked of the driver and timed; those between marks are drawn at random and told,
which leaves the driver the same history in a fraction of the time. A sampler that proposes what was run is asked again, up
to four times a trial; how often it was is shown, because each time costs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Task, space, tasks

from autotune.ledger import Ledger
from autotune.search import grid, samplers
from autotune.search.stopping import Growth
from autotune.trial import Origin, TrialJob, TrialRecord

MARKS = (100, 300, 1000, 3000, 10_000)
WINDOW = 50
"""Trials before each mark over which the cost is averaged."""
BLOCK = 10
"""Trials after which the other checkout has its turn, so that both meet the same machine."""
HEADER = "| trial | sampler asked | ask CPU ms | tell CPU ms | record CPU ms | together CPU ms | together wall ms | resident MiB |"
Times = tuple[float, float]
"""Wall and CPU seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is written, e.g. /dev/shm to leave the disk out")
    parser.add_argument("--beside", type=Path, help="another checkout, whose driver is measured in turns with this one's")
    parser.add_argument("--in-turns", action="store_true", help="begin a block for every line on the standard input")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    other = Other(given.beside, given.trials, given.folder) if given.beside is not None else None
    before = told if given.in_turns else at_once
    after = other.turn if other else before
    marks = [mark for mark in MARKS if mark <= given.trials]
    lines = [HEADER, "|---" * 8 + "|", *measured(marks, given.folder, before, after)]
    if other:
        lines += ["", f"The same of {given.beside}, block by block in turns with it:", "", *lines[:2], *other.rows()]
    about = (
        f"default policy, mean of the {WINDOW} trials before each mark; the recorded engine's own time is left out. "
        "Wall time exceeds CPU time by what else the machine did. What the sampler sees is bounded, and full by trial 300; what "
        "grows until then is Optuna's own work on it and how often it is asked. The memory is that of the ledger's records."
    )
    keep("What the driver costs", about, lines, given.out)


class Other:
    """This benchmark with the driver of another checkout, in a process that measures when it is told to."""

    def __init__(self, checkout: Path, trials: int, where: Path | None) -> None:
        folder = [] if where is None else ["--folder", str(where)]
        command = [sys.executable, __file__, "--in-turns", "--trials", str(trials), *folder]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        self.told: list[str] = []
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> None:
        """Let it measure a block, and wait until it has."""
        assert self.process.stdin is not None and self.process.stdout is not None
        for text in ("begin\n", "end\n"):
            self.process.stdin.write(text)
            self.process.stdin.flush()
            while (line := self.process.stdout.readline()) != text:
                self.told.append(line)

    def rows(self) -> list[str]:
        """Its line for each mark."""
        told = [*self.told, *self.process.communicate()[0].splitlines()]
        return list(dict.fromkeys(line.strip() for line in told if line.startswith("| ") and line[2].isdigit()))


def told() -> None:
    """Wait for a line, and say that it was heeded."""
    print(sys.stdin.readline(), end="", flush=True)


def at_once() -> None:
    """Wait for nobody."""


def measured(marks: list[int], where: Path | None, before: Callable[[], None], after: Callable[[], None]) -> list[str]:
    """A line for each mark, printed as it comes; `before` and `after` are called around each block."""
    task, lines, questions = tasks()[0], list[str](), counted()
    arm, growth = Ours(task, 0), Growth(task.directions)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=where) as folder, Ledger(Path(folder) / "cost", "name: cost\n", "digest") as ledger:
        for mark in marks:
            while arm.driver.next_number < mark - WINDOW:
                drawn(arm, task, ledger, random, growth)
            questions.clear()
            found = []
            for _ in range(WINDOW // BLOCK):
                before()
                found += [asked(arm, task, ledger, growth) for _ in range(BLOCK)]
                after()
            spent = np.array(found)
            cpu, wall = 1000 * spent[:, :, 1].mean(axis=0), 1000 * spent[:, :, 0].mean(axis=0).sum()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            cells = [*(f"{value:.1f}" for value in (*cpu, cpu.sum(), wall)), f"{memory:.0f}"]
            lines.append(f"| {mark} | {len(questions) / WINDOW:.1f} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return lines


def counted() -> list[object]:
    """Holds one entry for each question that the sampler is asked from now on."""
    found: list[object] = []
    ask = samplers.Conversation.ask
    samplers.Conversation.ask = lambda self: found.append(None) or ask(self)
    return found


def drawn(arm: Ours, task: Task, ledger: Ledger, random: np.random.Generator, growth: Growth) -> None:
    """A random trial, told and recorded like any other."""
    point = grid.draw(space(), random)
    number, configuration = arm.driver.next_number, space().decode(point)
    ran = task.run(configuration, number, 0, 0.03)
    record = TrialRecord(number=number, configuration=configuration, origin=Origin.SEARCH, point=point, outcome=ran.outcome)
    arm.driver.begin(number, configuration, point)
    arm.driver.tell(record, ran.score)
    growth.add(ran.score)
    ledger.record(record)


def asked(arm: Ours, task: Task, ledger: Ledger, growth: Growth) -> tuple[Times, Times, Times]:
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
    growth.add(ran.score)
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
