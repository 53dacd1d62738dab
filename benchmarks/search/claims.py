"""What the finalists claim against what is true, over many simulated studies.

    python benchmarks/search/claims.py --studies 200 --noise 0.03 0.10 --out benchmarks/results/claims.md

Each study searches, measures its front again beside the default, and claims a gain in throughput with a 95 % interval.
The truth is the noise-free ratio. Beside it: what the search's own best run would have claimed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Task, tasks

from autotune import finalists, source, study
from autotune.analysis import Analysis
from autotune.study import Study
from autotune.trial import Configuration, Origin, TrialRecord

STUDY = """\
name: claims
engine: {{kind: recorded}}
workload: {{kind: recorded, traffic: {traffic}}}
search_space: {{include: recorded}}
objectives: [{{maximize: {throughput}}}, {{minimize: peak_gpu_memory_gib}}]
constraints: ["{constraint}"]
finalists: {{count: 3, repeats: {repeats}}}
"""


@dataclass(frozen=True)
class Claim:
    """Ratios over the default: claimed with its interval, the search's own, and true."""

    claimed: float
    low: float
    high: float
    searched: float
    true: float
    answer: str


def claims(task: Task, seed: int, noise: float, trials: int, repeats: int) -> list[Claim]:
    """One study's claims in throughput, one for each finalist."""
    defined = definition(task, repeats)
    records = searched(task, seed, noise, trials)
    analysis = Analysis(defined, tuple(records))
    jobs = finalists.plan(analysis, defined.finalists, trials, seed)
    for job in jobs:
        ran = task.run(job.configuration, job.number, job.seed, noise)
        fields = job.model_dump(include={"number", "configuration", "origin"})
        records.append(TrialRecord(**fields, outcome=ran.outcome))
    whole = Analysis(defined, tuple(records))
    objective = defined.objectives[0]
    found = []
    default = task.truth(Configuration(engine="recorded"))
    assert default is not None
    measured_default = whole.value(records[0], objective) or np.nan
    for verdict in finalists.verdicts(whole, jobs):
        if verdict.objective != objective.name or verdict.ratio is None:
            continue
        record = next(record for record in records if record.number == verdict.trial)
        truth = task.truth(record.configuration)
        assert truth is not None
        search = (whole.value(record, objective) or np.nan) / measured_default
        true = truth.values[0] / default.values[0]
        found.append(Claim(verdict.ratio, verdict.low, verdict.high, search, true, verdict.answer))
    return found


def definition(task: Task, repeats: int) -> Study:
    text = STUDY.format(
        traffic=task.traffic, throughput=task.objectives[0].name, constraint=task.constraints[0].name, repeats=repeats
    )
    return study.validate(source.parse(text))[0]


def searched(task: Task, seed: int, noise: float, trials: int) -> list[TrialRecord]:
    arm = Ours(task, seed)
    records = []
    for number in range(trials):
        configuration = arm.ask()
        assert configuration is not None and arm.proposal is not None
        ran = task.run(configuration, number, seed, noise)
        arm.tell(configuration, ran)
        origin = Origin.DEFAULT if number == 0 else Origin.SEARCH
        records.append(TrialRecord(number=number, configuration=configuration, origin=origin, outcome=ran.outcome))
    return records


def interval(studies: list[list[Claim]], measure: Callable[[Claim], float], digits: int) -> str:
    """A mean over all claims with its 95 % bootstrap interval over studies, for the claims of one study share its default."""
    sums = np.array([[sum(map(measure, study)), len(study)] for study in studies])
    drawn = sums[np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    sign = "+" if digits > 1 else ""
    return f"{mean:{sign}.{digits}%} [{low:{sign}.{digits}%}, {high:{sign}.{digits}%}]"


def row(studies: list[list[Claim]]) -> list[str]:
    found = [claim for study in studies for claim in study]
    covered = interval(studies, lambda claim: claim.low <= claim.true <= claim.high, 1)
    over = interval(studies, lambda claim: claim.claimed / claim.true - 1, 2)
    lucky = [claim.searched / claim.true - 1 for claim in found]
    wrong = [
        claim for claim in found if (claim.answer == "better" and claim.true < 1) or (claim.answer == "worse" and claim.true > 1)
    ]
    return [str(len(found)), covered, over, f"{np.mean(lucky):+.2%}", f"{len(wrong) / len(found):.1%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.03, 0.10])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = [
        "noise",
        "claims",
        "95 % intervals that hold the truth",
        "mean overstatement",
        "the search's own overstatement",
        "wrong verdicts",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for noise in given.noise:
        found: list[list[Claim]] = []
        for index in range(given.studies):
            task = tasks()[index % 2]
            found.append(claims(task, index, noise, given.trials, given.repeats))
        lines.append("| " + " | ".join([f"{noise:.0%}", *row(found)]) + " |")
    about = (
        f"{given.studies} studies a noise, half on each surface; {given.trials} trials, {given.repeats} rounds; intervals are 95 %."
    )
    keep("What finalists claim against the truth", about, lines, given.out)


if __name__ == "__main__":
    main()
