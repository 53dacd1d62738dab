"""Several GPUs against one: trials an hour, and whether the same configuration measures the same beside others.

    python benchmarks/several_gpus.py ONE_GPU_FOLDER SEVERAL_GPUS_FOLDER [--out FILE]

Both folders hold a study (study.yaml, ledger.jsonl) of the same space and traffic. Trials an hour are counted from the first
trial's begin to the last one's end, less the waiting between calls where a study was continued. A configuration's figures are
means of logarithms over its runs; the ratios over the configurations that both studies measured give a t interval of 95 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autotune import estimates, results
from autotune.errors import AutotuneError
from autotune.results import StudyResults
from autotune.score import Objective
from autotune.trial import TrialRecord

PAUSE_S = 60.0
"""A longer gap in which no trial ran is a pause between two calls."""


def pace(records: Sequence[TrialRecord]) -> tuple[int, float]:
    """Trials, and the seconds in which at least one of them ran or the next was about to. One that was taken from another study,
    which says when it ran there, or that was refused before it began is none. Raises AutotuneError when no trial ran."""
    ran = [(one.started_at, one.total_seconds) for one in records if one.reused_from is None]
    spans = sorted((began, began + seconds) for began, seconds in ran if seconds)
    if not spans:
        raise AutotuneError("A study in which no trial ran has no pace.")
    seconds, end = 0.0, spans[0][0]
    for begin, stop in spans:
        seconds += max(0.0, stop - end) if begin - end < PAUSE_S else stop - begin
        end = max(end, stop)
    return len(spans), seconds


def ratios(one: StudyResults, several: StudyResults, objective: Objective) -> list[float]:
    """Several over one, for every configuration that both have measured."""
    there = {each.digest: each for each in several.candidates}
    both = [(each, there[each.digest]) for each in one.candidates if each.digest in there]
    known = [(a, b) for a, b in both if a.samples(objective) and b.samples(objective)]
    return [several.mean(b, objective) / one.mean(a, objective) for a, b in known]


def line(name: str, found: Sequence[float]) -> str:
    """One row: the mean ratio and its interval; without two configurations there is none."""
    if not found:
        return f"| {name} | 0 | | |"
    interval = estimates.estimate(found, estimates.pooled([found]))
    if interval is None:
        return f"| {name} | {len(found)} | {estimates.mean(found):.3f} | no interval |"
    return f"| {name} | {len(found)} | {interval.estimate:.3f} | {interval.low:.3f} to {interval.high:.3f} |"


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
    try:
        text = page(results.read(arguments.one), results.read(arguments.several))
    except AutotuneError as error:
        raise SystemExit(str(error)) from None
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
