"""Hypervolume against simulated GPU-minutes: our policy beside others, on surfaces recorded on an H200.

    python benchmarks/search/compare.py --seeds 20 --minutes 60 --slow --out benchmarks/results/search.md
    python benchmarks/search/compare.py --own --seeds 20 --minutes 60 --slow --out benchmarks/results/search.md

Each arm gets the same minutes, noise and surfaces. Hypervolume is that of the *true* values of the feasible
configurations it has run, over the best that the whole space holds; noise can mislead an arm but not the judge.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parent))

from arms import Arm, Ours, arms
from page import keep
from surfaces import Task, best, own, tasks

from autotune import pareto
from autotune.bar import LEAST_GAIN
from autotune.engines._recorded.noise import UNKNOWN_NOISE
from autotune.engines._recorded.recording import load
from autotune.engines._recorded.surface import surface
from autotune.search.prior import agreement
from autotune.stats import bootstrap_interval
from autotune.trial import Configuration, Failed, FailureKind, digest_of

MARKS = (10, 20, 30, 45, 60)
REACHED = 0.95
GOAL = 1 / 3
"""Of the minutes that the best other arm takes."""


@dataclass(frozen=True)
class Course:
    """One study: the normalised hypervolume after each launch, when that launch ended, whether it was wasted, whether it was
    ended early, and whether that was wrong: it would truly have added what counts."""

    minutes: tuple[float, ...]
    volumes: tuple[float, ...]
    failed: tuple[bool, ...]
    early: tuple[bool, ...] = ()
    missed: tuple[bool, ...] = ()

    def at(self, minute: float) -> float:
        """The hypervolume that had been reached by a minute."""
        done = [volume for ended, volume in zip(self.minutes, self.volumes, strict=True) if ended <= minute]
        return done[-1] if done else 0.0

    def reaches(self, volume: float) -> float:
        """The minute at which a hypervolume was reached; infinite when it was not."""
        return next((ended for ended, found in zip(self.minutes, self.volumes, strict=True) if found >= volume), np.inf)

    @property
    def wasted(self) -> float:
        """Share of launches after the fifth that could not start."""
        late = self.failed[5:]
        return float(np.mean(late)) if late else 0.0


def study(task: Task, arm: Arm, minutes: float, seed: int, noise: float | None) -> Course:
    """Run one arm for some GPU-minutes."""
    spent, points = 0.0, list[tuple[float, ...]]()
    ended, volumes = list[float](), list[float]()
    failed, early, missed = list[bool](), list[bool](), list[bool]()
    while spent < minutes:
        configuration = arm.ask()
        if configuration is None:
            break
        ran = task.run(configuration, len(ended), seed, noise, arm.levels, arm.bar())
        arm.tell(configuration, ran)
        spent += ran.seconds / 60
        truth = task.truth(configuration)
        # A launch that was ended early is never reported, whatever it would have been worth.
        short = isinstance(ran.outcome, Failed) and ran.outcome.kind is FailureKind.ENDED_EARLY
        early.append(short)
        worth = task.volume([*points, truth.values]) if short and truth is not None and truth.feasible else 0.0
        missed.append(worth >= (1 + LEAST_GAIN) * task.volume(points) > 0)
        if truth is not None and truth.feasible and not short:
            points.append(truth.values)
        ended.append(spent)
        volumes.append(task.volume(points) / best(task).volume)
        failed.append(ran.outcome.status == "failed" and ran.outcome.phase == "start")
    return Course(tuple(ended), tuple(volumes), tuple(failed), tuple(early), tuple(missed))


def sibling_front(task: Task, seed: int, noise: float | None) -> list[Configuration]:
    """Four points of the front that one of our own studies found on the other traffic: a real warm start, not the truth."""
    other = next(one for one in tasks() if one.name != task.name)
    arm = Ours(other, seed + 1000)
    seen: list[tuple[tuple[float, ...], Configuration]] = []
    for number in range(30):
        configuration = arm.ask()
        if configuration is None:
            break
        ran = other.run(configuration, number, seed + 1000, noise, bar=arm.bar())
        arm.tell(configuration, ran)
        if ran.score is not None and ran.score.feasible:
            seen.append((ran.score.values, configuration))
    members = pareto.front([values for values, _ in seen], other.directions)
    spread = sorted(members, key=lambda index: seen[index][0][1])
    chosen = [spread[round(share * (len(spread) - 1))] for share in (0, 0.33, 0.67, 1)]
    return [seen[index][1] for index in dict.fromkeys(chosen)]


def everything(
    on: Sequence[Task], seeds: int, minutes: float, noise: float | None, slow: bool, only: Sequence[str]
) -> dict[str, list[Course]]:
    """All arms on all tasks and seeds; lists are in the same order, so that they pair."""
    makers: dict[str, Callable[[Task, int], Arm]] = {
        **arms(slow),
        "ours, warm": lambda task, seed: Ours(task, seed, warm=sibling_front(task, seed, noise)),
    }
    chosen = {name: make for name, make in makers.items() if not only or name in only}
    found: dict[str, list[Course]] = {name: [] for name in chosen}
    for task in on:
        for name, make in chosen.items():
            found[name] += courses(task, name, make, seeds, minutes, noise)
            print(f"{task.name}: {name}: {np.mean([path.at(minutes) for path in found[name][-seeds:]]):.3f}", file=sys.stderr)
    return found


def courses(
    task: Task, name: str, make: Callable[[Task, int], Arm], seeds: int, minutes: float, noise: float | None
) -> list[Course]:
    """An arm's studies, kept in a file so that arms can be run one by one."""
    key = digest_of([task.name, task.constraints[0].limit, task.digest, name, seeds, minutes, noise])
    kept = Path(__file__).parent / ".cache" / f"arm-{key}.json"
    if kept.is_file():
        return [Course(*map(tuple, fields)) for fields in json.loads(kept.read_text())]
    result = [study(task, make(task, seed), minutes, seed, noise) for seed in range(seeds)]
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps([list(dataclasses.astuple(one)) for one in result]))
    return result


def interval(values: Sequence[float]) -> str:
    found = bootstrap_interval(values, lambda sample: float(np.mean(sample)), seed=0)
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def report(on: Sequence[Task], found: dict[str, list[Course]], seeds: int, minutes: float) -> str:
    marks = [mark for mark in MARKS if mark <= minutes]
    lines = [
        "| arm | "
        + " | ".join(f"HV at {mark} min" for mark in marks)
        + " | minutes to 95 % (median) | reached 95 % | launches | ended early | wrongly | wasted after the 5th |"
    ]
    lines.append("|---" * (len(marks) + 7) + "|")
    for name, paths in found.items():
        cells = [f"{np.mean([path.at(mark) for path in paths]):.3f}" for mark in marks]
        reached = [path.reaches(REACHED) for path in paths]
        median = float(np.median(reached))
        cells += ["not reached" if np.isinf(median) else f"{median:.0f}", f"{np.mean(np.isfinite(reached)):.0%}"]
        cells += [
            f"{np.mean([len(path.minutes) for path in paths]):.0f}",
            f"{np.mean([np.mean(path.early or [False]) for path in paths]):.0%}",
            f"{sum(sum(path.missed) for path in paths)} of {sum(sum(path.early) for path in paths)}",
        ]
        cells.append(f"{np.mean([path.wasted for path in paths]):.1%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *by_surface(on, found, seeds)] if len(on) > 1 else []
    lines += ["", *paired(found, minutes), "", *quartiles(on, found, seeds, minutes)]
    return "\n".join(lines)


def by_surface(on: Sequence[Task], found: dict[str, list[Course]], seeds: int) -> list[str]:
    """Median minutes to 95 % on each surface, for a mean over both may hide one of them."""
    names = [task.name for task in on]
    lines = ["| minutes to 95 % (median) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, paths in found.items():
        medians = [np.median([path.reaches(REACHED) for path in paths[at * seeds : (at + 1) * seeds]]) for at in range(len(names))]
        lines.append(f"| {name} | " + " | ".join("not reached" if np.isinf(one) else f"{one:.0f}" for one in medians) + " |")
    return lines


def paired(found: dict[str, list[Course]], minutes: float) -> list[str]:
    """Differences of the same seed on the same surface, with bootstrap intervals."""
    lines = ["| ours minus | at 20 min | at 30 min | at the end |", "|---|---|---|---|"]
    for name, paths in found.items():
        if name == "ours" or "ours" not in found:
            continue
        cells = [
            interval([a.at(mark) - b.at(mark) for a, b in zip(found["ours"], paths, strict=True)]) for mark in (20, 30, minutes)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def quartiles(on: Sequence[Task], found: dict[str, list[Course]], seeds: int, minutes: float) -> list[str]:
    """Each quartile of seeds of ours against the same quartile of random, on each surface."""
    if not {"ours", "random"} <= found.keys():
        return []
    lines = ["| surface | quartile | ours | random |", "|---|---|---|---|"]
    for index, task in enumerate(on):
        block = slice(index * seeds, (index + 1) * seeds)
        ours, others = (np.array([path.at(minutes) for path in found[name][block]]) for name in ("ours", "random"))
        for quartile in (0, 25, 50, 75, 100):
            lines.append(
                f"| {task.name} | {quartile} % | {np.percentile(ours, quartile):.3f} | {np.percentile(others, quartile):.3f} |"
            )
    return lines


def surface_errors(data: str) -> list[str]:
    lines = ["| level | metric | median error | root mean square | of answering the mean | |", "|---" * 6 + "|"]
    for error in surface(data).errors():
        numbers = f"{error.median:.1%} | {error.root_mean_square:.1%} | {error.of_mean:.1%}"
        verdict = "" if error.informed else "no better than the mean"
        lines.append(f"| {error.level or 'launch'} | {error.metric} | {numbers} | {verdict} |")
    return lines


def agreements(on: Sequence[Task]) -> str:
    """How well the roofline ranks the launches as they were measured, which is not how well it ranks the surface."""
    agreed = []
    for task in on:
        roofline, ((key, together),) = Ours(task, 0).roofline, task.saturated.items()
        launches = [launch for launch in load(task.data).distinct if launch.levels]
        told = [roofline.predict(Configuration(engine="recorded", values=launch.config)) for launch in launches]
        measured = [
            next(one.out_tps for one in launch.levels if one.name == f"{task.traffic}/{key}/{together:g}") for launch in launches
        ]
        found = agreement([one["output_tokens_per_s"] for one in told], measured)
        agreed.append(f"{task.name} {found:.2f}")
    return (
        f"The roofline behind `ours` ranks the {len(measured)} configurations as they were measured with a Spearman correlation of "
        f"{', '.join(agreed)} in tokens/s."
    )


def caveats(on: Sequence[Task]) -> list[str]:
    """What has to be known to read the table."""
    return [
        f"{agreements(on)} Between launches the surface is itself interpolated over features that the roofline "
        "uses too (reachable concurrency, KV capacity), which favours an arm with a prior. `ours, no prior` is free of that; in "
        "`ours, a prior off by 30 %` each configuration's predicted rate is wrong by a random factor of its own (log-normal), "
        "which the surface cannot share.",
        f"`wrongly` counts the launches that were ended early although they would truly have added {LEAST_GAIN:.1%} or more to the "
        "hypervolume; the bound allows one in twenty of those that would have.",
        "The surfaces are one model on one card; they rank policies, not engines. Simulated launches cost what recorded ones cost.",
        "`ours, warm` starts from the front of one of our own 30-trial studies of the other traffic; its minutes are not counted.",
    ]


def against_best(found: dict[str, list[Course]], minutes: float) -> list[str]:
    """Ours beside the best arm that is not ours, in median minutes to 95 %, and the arms that end ahead of ours beyond doubt."""
    medians = {name: float(np.median([path.reaches(REACHED) for path in paths])) for name, paths in found.items()}
    others = {name: median for name, median in medians.items() if not name.startswith("ours") and np.isfinite(median)}
    if "ours" not in medians or not others:
        return []
    name, ours = min(others, key=others.__getitem__), medians["ours"]
    share = ours / others[name]
    verdict = "is" if share <= GOAL else "is not"
    return [
        f"`ours` takes {ours:.0f} minutes to {REACHED:.0%}, and {name}, the best other arm, {others[name]:.0f}: {share:.0%} of its "
        f"minutes, which {verdict} the third that is our goal.",
        *(f"At the end {one} is ahead of `ours`." for one in found if ahead(found["ours"], found[one], minutes)),
    ]


def ahead(ours: list[Course], others: list[Course], minutes: float) -> bool:
    """Whether the others hold more at the end, the whole bootstrap interval of the paired differences considered."""
    differences = [a.at(minutes) - b.at(minutes) for a, b in zip(ours, others, strict=True)]
    return bootstrap_interval(differences, lambda sample: float(np.mean(sample)), seed=0).high < 0


def own_caveats(task: Task) -> list[str]:
    """What the surface of our own study is, and is not."""
    found = load(task.data)
    launched = [task.truth(Configuration(engine="recorded", values=launch.config)) for launch in found.distinct]
    measured = {one.values for one in launched if one is not None}
    points = best(task).points
    objectives = ", ".join(f"{each.direction} {each.name}" for each in task.objectives)
    return [
        f"Aims: {objectives}; {', '.join(each.name for each in task.constraints)}.",
        f"The surface: {len(found.launches)} launches of {len(found.distinct)} configurations. {found.about.setup}",
        "Nearly all of them were chosen by a search for a good front, so that they crowd there. No launch failed and nothing in "
        "the space can: what the policy knows of crashes and of memory has nothing to do here. A launched configuration is "
        "answered as it was measured, its luck included. " + agreements([task]),
        f"Launched were {sum(one in measured for one in points)} of the {len(points)} points of the true front; the others are "
        "what the surface makes of the launches, and are as far off as the table of errors says.",
        task.note,
        f"The surface answers the mean of the launches for {', '.join(found.about.flat) or 'nothing'}: cross-validation found its "
        "own answer no better there, so that nothing can be aimed at them.",
    ]


def noise_of(task: Task, asked: float | None) -> str:
    """The noise of a task's simulated launches in words."""
    fitted = load(task.data).about.noise
    if asked is not None or not fitted:
        return f"noise {UNKNOWN_NOISE if asked is None else asked:.0%}"
    sizes = "; ".join(
        f"{name}: rates {one.rates:.1%}, TTFT {one.ttft:.1%}, TPOT {one.tpot:.1%}, E2E {one.e2e:.1%}"
        for name, one in fitted.items()
    )
    return f"noise as between the recording's own relaunches ({sizes}; on {next(iter(fitted.values())).degrees} degrees of freedom)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--noise", type=float, help="0.03, or what the recording of --own says of itself")
    parser.add_argument("--slow", action="store_true", help="with Optuna's GP, a minute of CPU for each of its studies")
    parser.add_argument("--only", nargs="*", default=[], metavar="ARM")
    parser.add_argument("--own", action="store_true", help="on the surface of our own study, as a section of the page")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    on = own() if given.own else tasks()
    noise = UNKNOWN_NOISE if given.noise is None and not given.own else given.noise
    found = everything(on, given.seeds, given.minutes, noise, given.slow, given.only)
    facts = ", ".join(
        f"{task.name}: {len(best(task).points)} points on the true front, {best(task).failing_share:.1%} of the space fails"
        for task in on
    )
    about = (
        f"Python {platform.python_version()}, optuna {optuna.__version__}; recording {load(on[0].data).name}; "
        f"{on[0].space.size():.0f} points; {given.seeds} seeds a surface, {noise_of(on[0], noise)}; {facts}."
    )
    body = [
        report(on, found, given.seeds, given.minutes),
        "",
        *(against_best(found, given.minutes) if given.own else []),
        *(own_caveats(on[0]) if given.own else caveats(on)),
        "",
        "How far the surface itself is off where a configuration is left out (cross-validation):",
        "",
        *surface_errors(on[0].data),
    ]
    title = "On the surface of our own study on the H200" if given.own else "Search policies on recorded surfaces"
    keep(title, about, body, given.out, section=given.own)


if __name__ == "__main__":
    main()
