"""Several GPUs against one: trials an hour, and whether the same configuration measures the same beside others.

    python benchmarks/several_gpus.py ONE_GPU_FOLDER SEVERAL_GPUS_FOLDER [--out FILE]

Both folders hold a study (study.yaml, ledger.jsonl) of the same space and traffic. Trials an hour are counted from the first
trial's begin to the last one's end, less the waiting between calls where a study was continued. A configuration's figures are
means of logarithms over its runs; the ratios over the configurations that both studies measured give a t interval of 95 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autotune import results
from autotune.results import StudyResults
from autotune.score import Objective
from autotune.stats import t_quantile
from autotune.trial import TrialRecord

PAUSE_S = 60.0
"""A longer gap in which no trial ran is a pause between two calls."""


def spent(record: TrialRecord) -> float:
    """Seconds that a trial had its GPU."""
    return sum(record.seconds[name] for name in ("start", "measure", "stop") if name in record.seconds)


def pace(records: Sequence[TrialRecord]) -> tuple[int, float]:
    """Trials, and the seconds in which at least one of them ran or the next was about to."""
    spans = sorted((one.started_at, one.started_at + spent(one)) for one in records)
    seconds, end = 0.0, spans[0][0]
    for begin, stop in spans:
        seconds += max(0.0, stop - end) if begin - end < PAUSE_S else stop - begin
        end = max(end, stop)
    return len(spans), seconds


def ratios(one: StudyResults, several: StudyResults, objective: Objective) -> list[float]:
    """Logarithms of several over one, for every configuration that both have measured."""
    found = []
    for here in one.candidates:
        there = next((other for other in several.candidates if other.digest == here.digest), None)
        values = [study.samples(each, objective) for study, each in ((one, here), (several, there)) if each is not None]
        if len(values) == 2 and all(values):
            found.append(float(np.mean(np.log(values[1])) - np.mean(np.log(values[0]))))
    return found


def line(name: str, logs: Sequence[float]) -> str:
    """One row: the mean ratio and its interval; without two configurations there is none."""
    if len(logs) < 2:
        return f"| {name} | {len(logs)} | {math.exp(logs[0]):.3f} | no interval |" if logs else f"| {name} | 0 | | |"
    margin = t_quantile(0.975, len(logs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    middle = float(np.mean(logs))
    return f"| {name} | {len(logs)} | {math.exp(middle):.3f} | {math.exp(middle - margin):.3f} to {math.exp(middle + margin):.3f} |"


def page(one: StudyResults, several: StudyResults) -> str:
    """Both tables."""
    lines = ["| study | GPUs | trials | seconds | trials an hour |", "|---|---:|---:|---:|---:|"]
    rates = []
    for found in (one, several):
        gpus = {index for record in found.records for index in record.gpus}
        count, seconds = pace(found.records)
        rates.append(3600 * count / seconds)
        lines.append(f"| {found.name} | {len(gpus)} | {count} | {seconds:.0f} | {rates[-1]:.1f} |")
    lines += ["", f"{rates[1] / rates[0]:.2f} times the trials an hour.", ""]
    lines += ["| several over one | configurations | ratio | 95 % |", "|---|---:|---:|---|"]
    lines += [line(each.name, ratios(one, several, each)) for each in one.study.objectives]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("several", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = page(results.read(arguments.one), results.read(arguments.several))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
