"""Fronts of earlier studies in the same store as first trials of a new one.

A study is related when it tuned the same kind of engine with the same kind of workload. How near it is, is the product of
five shares between 0 and 1: engine version, model size, device, traffic and objectives. The nearest study offers first;
of each front come the best of every objective, then the knee, then the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune import ledger, models, pareto, study
from autotune.engines.base import Identity
from autotune.errors import AutotuneError
from autotune.score import Objective, Score, score
from autotune.space import Space
from autotune.study import Study
from autotune.trial import Configuration, Frozen, TrialFailed, TrialRecord, Value

OFFERS = 4
"""First trials taken over: what four points of a related front gave is in `benchmarks/search`."""
NEAR_ENOUGH = 0.2


class Offer(Frozen):
    """A configuration that was on the front of another study, and how near that study is (0 to 1)."""

    configuration: Configuration
    study: str
    trial: int
    similarity: float

    def __str__(self) -> str:
        return f"trial {self.trial} of {self.study} (similarity {self.similarity:.2f})"


def offers(
    store: Path,
    wanted: Study,
    identities: Mapping[str, Identity],
    space: Space,
    resolved: Mapping[str, Mapping[str, Value]],
    limit: int = OFFERS,
) -> list[Offer]:
    """What earlier studies offer, nearest first. A study that cannot be read is passed over."""
    related = [
        (near, folder.name, earlier, history)
        for folder, earlier, history in _studies(store, wanted.name)
        if (near := similarity(wanted, earlier, identities, _identities(history))) >= NEAR_ENOUGH
    ]
    found: dict[str, Offer] = {}
    for near, name, earlier, history in sorted(related, key=lambda entry: (-entry[0], entry[1])):
        for record in _front(wanted, earlier, list(history.records.values())):
            fits = _fitting(record.configuration, space, resolved)
            if fits is not None and fits.digest not in found:
                found[fits.digest] = Offer(configuration=fits, study=name, trial=record.number, similarity=near)
    return list(found.values())[:limit]


def similarity(one: Study, other: Study, mine: Mapping[str, Identity], theirs: Mapping[str, Identity]) -> float:
    """How near another study is, 0 to 1; 0 when engine or workload are of other kinds."""
    shared = {str(section["kind"]) for section in one.engine} & {str(section["kind"]) for section in other.engine}
    if not shared or one.workload.get("kind") != other.workload.get("kind"):
        return 0.0
    kind = sorted(shared)[0]
    first, second = (next(s for s in each.engine if s["kind"] == kind) for each in (one, other))
    same_aims = {objective.name for objective in one.objectives} == {objective.name for objective in other.objectives}
    return (
        _versions(mine.get(kind), theirs.get(kind))
        * _models(str(first.get("model", "")), str(second.get("model", "")))
        * _traffic(one.workload, other.workload)
        * (1.0 if same_aims else 0.8)
    )


def _studies(store: Path, own: str) -> Iterator[tuple[Path, Study, ledger.History]]:
    for folder in ledger.studies(store):
        if folder.name == own:
            continue
        try:
            yield folder, study.load(folder / ledger.STUDY)[0], ledger.read(folder)
        except (AutotuneError, OSError):
            continue


def _identities(history: ledger.History) -> dict[str, Identity]:
    notes = [note.payload for note in history.notes if note.kind == "engines"]
    return {kind: Identity.model_validate(value) for kind, value in notes[-1].items()} if notes else {}


def _versions(mine: Identity | None, theirs: Identity | None) -> float:
    if mine is None or theirs is None:
        return 0.5
    version = 1.0 if mine.version == theirs.version else 0.9
    return version * (1.0 if mine.device == theirs.device else 0.5)


def _models(one: str, other: str) -> float:
    """Models count as near when their parameter counts are: a factor of two costs 0.3."""
    if one == other:
        return 1.0
    sizes = []
    for name in (one, other):
        try:
            facts = models.facts(name)
        except AutotuneError:
            facts = None
        sizes.append(facts.parameters if facts else None)
    if sizes[0] is None or sizes[1] is None:
        return 0.5
    return float(0.7 ** abs(math.log2(sizes[0] / sizes[1])))


def _traffic(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The share of settings that are equal; numbers count by how near they are. Never below a third: some front beats none."""
    left, right = dict(_leaves(one)), dict(_leaves(other))
    names = left.keys() | right.keys()
    equal = math.fsum(_likeness(left.get(name), right.get(name)) for name in names) / max(1, len(names))
    return (1 + 2 * equal) / 3


def _likeness(one: Any, other: Any) -> float:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in (one, other))
    if numbers:
        return float(min(one, other) / max(one, other))
    return float(one == other)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def _front(wanted: Study, earlier: Study, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The earlier study's front by the new study's aims where its measurements allow it, else by its own."""
    for judge in (wanted, earlier):
        scored = [(record, found) for record in records if (found := _score(judge, record)) is not None and found.feasible]
        if scored:
            return _ordered(scored, judge.objectives)
    return []


def _score(judge: Study, record: TrialRecord) -> Score | None:
    if record.measurement is None:
        return None
    try:
        return score(record.measurement, judge.objectives, judge.constraints)
    except TrialFailed:
        return None


def _ordered(scored: Sequence[tuple[TrialRecord, Score]], objectives: Sequence[Objective]) -> list[TrialRecord]:
    directions = [objective.direction for objective in objectives]
    points = [found.values for _, found in scored]
    members = pareto.front(points, directions)
    table = pareto.losses([points[index] for index in members], directions)
    best = [members[int(table[:, axis].argmin())] for axis in range(len(directions))]
    knee = pareto.knee(points, directions)
    order = dict.fromkeys([*best, *([] if knee is None else [knee]), *members])
    return [scored[index][0] for index in order]


def _fitting(configuration: Configuration, space: Space, resolved: Mapping[str, Mapping[str, Value]]) -> Configuration | None:
    """The configuration as the new space can express it; None when it cannot, forbids it, or has it for its default."""
    known = resolved.get(configuration.engine, {})
    point = space.encode(configuration, known)
    if point is None or point == space.encode(Configuration(engine=configuration.engine), known):
        return None
    found = space.decode(point)
    return None if space.forbidden(found, known) else found
