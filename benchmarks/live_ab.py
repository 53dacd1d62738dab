"""Two search policies on a live engine, judged by their fronts measured again in one go.

    autotune run studies/h200/ab-ours.yaml; autotune run studies/h200/ab-tpe.yaml       # the same GPU-minutes each
    python benchmarks/live_ab.py front [--store .autotune] [--out .autotune]            # writes ab-front-1.yaml, ab-front-2.yaml
    autotune run .autotune/ab-front-1.yaml; autotune run .autotune/ab-front-2.yaml
    python benchmarks/live_ab.py table [--store .autotune] [--out studies/results/h200-live-ab/README.md]

`front` takes up to five members of each arm's front, spread over its first objective with both ends, and the default. Each
round launches all of them once, the second in reverse, with arrivals of its own, and climbs to the SLO from a rate that neither arm
began at, in finer steps and longer windows. `table` counts these measurements alone, all rounds of the store: what an arm
claimed is only shown. `front --first 3` writes two more rounds.

A configuration that kept the SLO at no rate in one of its rounds adds nothing to its arm's hypervolume. Intervals are those
of 2,000 draws around the means, by Student's t with the noise pooled over all that was measured twice (`estimates`).
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from live_ab_judge import MOST, gathered, judged, union
from live_ab_page import page

from autotune import ledger, results
from autotune import study as studies
from autotune.errors import AutotuneError, NotFound
from autotune.score import Constraint
from autotune.study import Study
from autotune.trial import Configuration

ARMS = ("ab-ours", "ab-tpe")
ROUND = "ab-front-"
SEED = 1000
"""Seeds of the rounds begin here, far from those of a search."""


def comparable(ours: Study, other: Study) -> None:
    """Raises AutotuneError when the arms differ in more than their search and their load."""
    for what, first, second in (
        ("engine sections", ours.engine, other.engine),
        ("workloads, their load aside,", _without_load(ours), _without_load(other)),
        ("search spaces", ours.search_space, other.search_space),
        ("SLOs", _slo(ours), _slo(other)),
        ("objectives beside the first", ours.objectives[1:], other.objectives[1:]),
        ("budgets", ours.budget.gpu_minutes, other.budget.gpu_minutes),
    ):
        if first != second:
            raise AutotuneError(f"The {what} of {ours.name} and {other.name} differ, so their fronts do not compare.")


def round_of(ours: Study, raw: Mapping[str, Any], chosen: Sequence[Configuration], number: int) -> dict[str, Any]:
    """The study that launches the default and the chosen configurations once, in order and to the end. Raises AutotuneError."""
    load = copy.deepcopy(_climb(ours))
    load["slo_climb"].update(
        start=round(0.9 * load["slo_climb"]["start"], 3),
        precision=load["slo_climb"].get("precision", 0.1) / 2,
        max_steps=load["slo_climb"].get("max_steps", 8) + 1,
    )
    window = dict(ours.workload.get("window", {}))
    window["measure_s"] = round(1.25 * window.get("measure_s", 20.0), 3)
    several = len(ours.engine) > 1
    return {
        "name": f"{ROUND}{number}",
        "about": f"Round {number} of measuring the fronts of {' and '.join(ARMS)} again.",
        **{name: raw[name] for name in ("engine", "search_space", "objectives", "executor") if name in raw},
        "workload": {**ours.workload, "load": [load], "window": window},
        "first_trials": [{**({"engine": one.engine} if several else {}), **one.values} for one in chosen],
        "budget": {"trials": len(chosen) + len(ours.engine)},
        "search": {"seed": SEED + number, "warm_start": False, "early_exit": False, "baseline_every": 0},
        "finalists": {"count": 0},
        "tracking": {"enabled": False},
    }


def write_rounds(store: Path, out: Path, most: int, first: int = 1) -> list[Path]:
    """The study files of two rounds, the lower number `first`. Raises AutotuneError, NotFound."""
    arms = [results.load(name, store) for name in ARMS]
    comparable(arms[0].study, arms[1].study)
    fronts = [[one.records[0].configuration for one in found.along_front(most)] for found in arms]
    for found, front in zip(arms, fronts, strict=True):
        print(f"{found.name}: {len(found.noisy_front.members)} on its front, {len(front)} of them to be measured again.")
    parsed, text = studies.load(store / ARMS[0] / ledger.STUDY)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{ROUND}{number}.yaml" for number in (first, first + 1)]
    order = union(fronts)
    random.Random(SEED + first).shuffle(order)
    # Reversed, a drift of the host weighs alike on all, and two rounds that are both cut short still know each of them once.
    for number, (path, each) in enumerate(zip(paths, (order, order[::-1]), strict=True), start=first):
        made = round_of(parsed, text.data, each, number)
        path.write_text(yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120))
        studies.load(path)
    return paths


def table(store: Path, most: int) -> str:
    """The page. Raises AutotuneError, NotFound."""
    arms = {name: results.load(name, store) for name in ARMS}
    comparable(*(found.study for found in arms.values()))
    names = sorted((path.name for path in store.glob(f"{ROUND}*") if path.is_dir()), key=lambda name: (len(name), name))
    rounds = [results.load(name, store) for name in names]
    if not rounds:
        raise NotFound(f"There is no round {ROUND}1 in {store}.")
    told = judged(gathered(arms, rounds, most), rounds[0].directions, ARMS)
    histories = {name: ledger.read(store / name) for name in ARMS}
    return page(arms, rounds, histories, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("front", "table"))
    parser.add_argument("--store", type=Path, default=Path(".autotune"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first", type=int, default=1, help="number of the first of the two rounds that `front` writes")
    parser.add_argument("--most", type=int, default=MOST, choices=range(2, 21), metavar="2..20")
    arguments = parser.parse_args()
    try:
        if arguments.step == "front":
            print(*write_rounds(arguments.store, arguments.out or arguments.store, arguments.most, arguments.first), sep="\n")
            return
        text = table(arguments.store, arguments.most)
    except AutotuneError as error:
        raise SystemExit(str(error)) from None
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


def _climb(study: Study) -> dict[str, Any]:
    """The study's load that climbs. Raises AutotuneError."""
    for load in study.workload.get("load", ()):
        if "slo_climb" in load:
            return dict(load)
    raise AutotuneError(f"The study {study.name} does not climb to an SLO, so nothing says how its front is measured again.")


def _slo(study: Study) -> frozenset[str]:
    """The SLO, whether a climb finds its rate or constraints bound a fixed load."""
    loads = [load["slo_climb"] for load in study.workload.get("load", ()) if "slo_climb" in load]
    if loads:
        return frozenset(Constraint.parse(text).name for text in loads[0]["constraints"])
    return frozenset(one.name.partition(" @")[0] for one in study.constraints)


def _without_load(study: Study) -> dict[str, Any]:
    return {name: value for name, value in study.workload.items() if name != "load"}


if __name__ == "__main__":
    main()
