"""Seconds that the driver itself takes for a trial, at 100, 1,000 and 10,000 trials.

python benchmarks/search/cost.py --trials 10000 --out benchmarks/results/driver_cost.md
"""

from __future__ import annotations

import argparse
import datetime
import resource
import shlex
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from surfaces import tasks

from autotune.ledger import Ledger
from autotune.trial import TrialJob, TrialRecord

WINDOW = 50
"""Trials before each mark over which the cost is averaged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is written, e.g. /dev/shm to leave the disk out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    marks = [mark for mark in (100, 1000, 3000, 10_000) if mark <= given.trials]
    lines = ["| trial | ask ms | tell ms | record ms | together ms | resident MiB |", "|---|---|---|---|---|---|"]
    spent = np.zeros((given.trials, 3))
    task = tasks()[0]
    arm = Ours(task, 0)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, Ledger(Path(folder) / "cost", "name: cost\n", "digest") as ledger:
        for number in range(given.trials):
            before = time.perf_counter()
            arm.ask()
            asked = time.perf_counter()
            assert arm.proposal is not None
            ran = task.run(arm.proposal.configuration, number, 0, 0.03)
            fields = arm.proposal.model_dump(include={"number", "configuration", "origin", "point"})
            record = TrialRecord(**fields, outcome=ran.outcome)
            ran_at = time.perf_counter()
            arm.tell(record.configuration, ran)
            told = time.perf_counter()
            ledger.begin(TrialJob(**fields, seed=0))
            ledger.record(record)
            spent[number] = asked - before, told - ran_at, time.perf_counter() - told
            if number + 1 in marks:
                means = 1000 * spent[number + 1 - WINDOW : number + 1].mean(axis=0)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                cells = [*(f"{value:.1f}" for value in (*means, means.sum())), f"{memory:.0f}"]
                lines.append(f"| {number + 1} | " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    head = f"# What the driver costs\n\nCommand: `python benchmarks/search/cost.py {shlex.join(sys.argv[1:])}`\n"
    about = f"{datetime.date.today()}; default policy, mean of the {WINDOW} trials before each mark; the recorded engine's own "
    about += "time is left out. `record` is two lines of the ledger, each forced to disk.\n\n"
    text = head + about + "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)


if __name__ == "__main__":
    main()
