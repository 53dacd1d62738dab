#!/usr/bin/env python3
"""Turn a study's ledger into a recording that the `recorded` engine replays, and say how far its surface can be trusted.

    python scripts/recording.py .autotune/NAME benchmarks/data/NAME.jsonl --traffic chat

Writes NAME.jsonl, a launch a line, with its description NAME.json beside it. Finalists and baselines are launches like the rest;
the spread between launches of one configuration becomes the recording's noise, and what leave-one-out finds no better predicted
than by the mean is marked in the description, so that the surface answers the mean there.

What a ledger does not hold is not made up: the window's rates stand for the level's, a level's memory is its launch's peak, its
seconds are its warm-up, its window and an equal share of the rest of the launch's measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from autotune import expression, history, models
from autotune import study as studies
from autotune.engines._recorded.recording import Description, LaunchRecord, Level, Noise, Percentiles, Recording, Traffic, load
from autotune.engines._recorded.surface import KNOWN, Error, Surface
from autotune.engines.recorded import DEFAULT_RECORDING
from autotune.errors import AutotuneError
from autotune.history import History
from autotune.study import Study
from autotune.trial import Failed, Phase, Row, TrialRecord, Value
from autotune.workloads.http import HttpWorkload

LEAST = 5
"""Launches below which there is nothing to fit or to leave out."""
FAMILIES = {"out_tps": "rates", "ttft.p99": "ttft", "tpot.p99": "tpot", "e2e.p99": "e2e", "mem_gib": "memory", "start_s": "start"}


def launch(record: TrialRecord, kind: str) -> LaunchRecord | str:
    """The launch of a trial, or why it is none."""
    outcome, total = record.outcome, record.total_seconds
    if record.reused_from is not None:
        return "taken from another study"
    if total is None or "start" not in record.seconds:
        return "never launched"
    known = {"idx": record.number, "config": dict(record.configuration.values), "gpu": next(iter(record.gpus), 0)}
    seconds = {"start_s": rounded(record.seconds["start"]), "total_s": rounded(total)}
    if isinstance(outcome, Failed):
        if outcome.phase is not Phase.START or not outcome.kind.deterministic:
            return f"{outcome.kind} during {outcome.phase}"
        return LaunchRecord(**known, **seconds, error=" ".join(outcome.evidence) or str(outcome.kind))
    table = outcome.measurement
    wrong = next((row.invalid for row in table.rows if row.invalid), None)
    if wrong is not None:
        return f"a level is invalid: {wrong}"
    if any(one["errors"] for one in table.facts.get("levels", ())):
        return "requests failed, and a ledger does not say how many"
    tokens = table.totals.get("kv_cache_tokens")
    try:
        found = tuple(levels(record, kind))
    except KeyError as error:
        return f"no {error.args[0]} was measured"
    return LaunchRecord(**known, **seconds, kv_tokens=None if tokens is None else round(tokens), levels=found)


def levels(record: TrialRecord, kind: str) -> Iterator[Level]:
    table = record.measurement
    assert table is not None
    facts: Sequence[Mapping[str, Value]] = table.facts["levels"]
    rest = record.seconds["measure"] - sum(one["window_from_s"] + one["window_s"] for one in facts)
    for row, one in zip(table.rows, facts, strict=True):
        took = one["window_from_s"] + one["window_s"] + max(0.0, rest) / len(facts)
        yield level(row, one, kind, table.totals["peak_gpu_memory_gib"], took, bool(record.effective.get("enable_prefix_caching")))


def level(row: Row, facts: Mapping[str, Value], kind: str, memory_gib: float, took_s: float, cached: bool) -> Level:
    """A row in the recording's units. Without a prefix cache nothing can hit it, which the ledger leaves out."""
    metrics, span = row.metrics, facts["window_s"]
    asked, finished = facts["requests_in_window"], facts["finished_in_window"]
    rate, together = row.level.get("request_rate"), row.level.get("concurrency")
    return Level(
        kind=kind,
        rate=None if rate is None else float(rate),
        conc=None if together is None else int(together),
        n=asked,
        ok=finished,
        cut=asked - finished,
        err=0,
        span=span,
        rps=rounded(metrics["requests_per_s"]),
        out_tps=rounded(metrics["output_tokens_per_s"]),
        tot_tps=rounded(metrics["total_tokens_per_s"]),
        **{name: percentiles(metrics, f"{name}_ms") for name in ("ttft", "tpot", "e2e")},
        joule=rounded(metrics["energy_joule_per_token"] * metrics["output_tokens_per_s"] * span),
        mem_gib=rounded(memory_gib),
        preempt=metrics["preemptions"],
        hit=metrics["prefix_cache_hit_rate"] if cached else 0.0,
        took_s=rounded(took_s),
    )


def percentiles(metrics: Mapping[str, float], name: str) -> Percentiles:
    return Percentiles(**{statistic: rounded(metrics[f"{name}.{statistic}"]) for statistic in Percentiles.model_fields})


def rounded(value: float) -> float:
    return float(f"{value:.7g}")


def describe(found: History, study: Study, traffic: str, only: str | None, device_memory_gib: float | None) -> Description:
    """What was measured on what. Raises AutotuneError for what the study does not say."""
    kept = [note.payload for note in found.notes if note.kind == "engines"]
    if len(study.engine) != 1 or not kept:
        raise AutotuneError("A recording holds the launches of one engine, and the study has another number of them.")
    if study.workload.get("kind") != "http":
        raise AutotuneError("A recording holds load levels, which only a study with the http workload measures.")
    (kind, identity), section = next(iter(kept[-1].items())), study.engine[0]
    first = next((one for one in found.records.values() if not one.configuration.values and one.measurement), None)
    model, shape = models.facts(str(section["model"])), HttpWorkload(HttpWorkload.Options(**study.workload)).request_shape()
    if first is None or model is None or shape is None:
        raise AutotuneError("A recording needs a measured default, a model of known shape and traffic of known lengths.")
    varied = dict.fromkeys(name for one in found.records.values() for name in one.configuration.values) | dict.fromkeys(KNOWN)
    if unknown := [name for name in varied if name not in first.effective]:
        raise AutotuneError(f"The recorded engine needs {', '.join(unknown)} of the default, which {kind} did not confirm.")
    if words := [name for name in varied if name not in KNOWN and not isinstance(first.effective[name], bool | int | float)]:
        raise AutotuneError(f"The surface has no scale for {', '.join(words)}: leave it out of the study's search space.")
    tokens = round(shape.input_tokens + shape.output_tokens)
    lengths = {name: round(getattr(shape, f"{name}_tokens")) for name in ("shared", "input", "output")}
    packages = ", ".join(f"{name} {version}" for name, version in identity["packages"].items())
    starts = [one.seconds["start.imports"] for one in found.records.values() if "start.imports" in one.seconds]
    return Description(
        engine=f"{kind}-{identity['version']}",
        device=identity["device"],
        device_memory_gib=device_memory_gib or memory_of(identity["device"]),
        measured=str(datetime.datetime.fromtimestamp(first.started_at, datetime.UTC).date()),
        setup=f"The study {study.name}: {packages}; {section['model']}, {section.get('fixed', {})}. Rates are those of a window "
        "within each level, a level's memory is its launch's peak." + (f" Only launches with {only}." if only else ""),
        imports_s=round(float(np.median(starts)), 2) if starts else 0.0,
        max_model_len=int(first.effective["max_model_len"]),
        model=model,
        defaults={name: first.effective[name] for name in varied},
        traffic={traffic: Traffic(tokens_per_request=tokens, **{f"{name}_tokens": value for name, value in lengths.items()})},
        noisy=True,
    )


def memory_of(device: str) -> float:
    """GiB of a device that a packaged recording knows; a ledger does not hold it."""
    known = load(DEFAULT_RECORDING).about
    if known.device != device:
        raise AutotuneError(f"How much memory {device} has is not known here; say it with --device-memory-gib.")
    return known.device_memory_gib


def noise(recording: Recording) -> dict[str, Noise]:
    """Of each level, the spread of logarithms between launches of one configuration, pooled over configurations."""
    groups = [group for group in recording.repeats if len(group) > 1 and group[0].levels]
    degrees = sum(len(group) - 1 for group in groups)

    def spread(index: int, family: str) -> float:
        logs = [np.log([value_of(one.levels[index], family) for one in group]) for group in groups]
        return round(math.sqrt(sum(float(np.sum((values - values.mean()) ** 2)) for values in logs) / degrees), 4)

    names = [level.name for level in groups[0][0].levels] if degrees else []
    families = ("rates", "ttft", "tpot", "e2e")
    return {
        name: Noise(**{family: spread(index, family) for family in families}, degrees=degrees) for index, name in enumerate(names)
    }


def value_of(level: Level, family: str) -> float:
    return level.out_tps if family == "rates" else float(getattr(level, family).p99)


def flat(errors: Sequence[Error]) -> tuple[str, ...]:
    return tuple(f"{one.level} {FAMILIES[one.metric]}".strip() for one in errors if not one.informed and one.metric in FAMILIES)


def recording(
    source: Path, study: Path, traffic: str, only: str | None = None, device_memory_gib: float | None = None
) -> tuple[Recording, list[Error], Counter[str]]:
    """The recording of a ledger, its surface's errors before anything was flattened, and what was left out and why.

    `only` is a condition on the parameters, in the language of search spaces. Raises AutotuneError.
    """
    found = history.parse(source.read_bytes(), source)[0]
    about = describe(found, studies.load(study)[0], traffic, only, device_memory_gib)
    records = sorted((*found.earlier, *found.records.values()), key=lambda one: (one.number, one.attempt))
    told = [f"not {only}" if outside(one, about, only) else launch(one, traffic) for one in records]
    launches, left_out = tuple(one for one in told if isinstance(one, LaunchRecord)), Counter(filter(_is_text, told))
    if sum(bool(one.levels) for one in launches) < LEAST:
        raise AutotuneError(f"Fewer than {LEAST} launches have levels to record. Left out: {dict(left_out)}.")
    whole = Recording(name=source.stem, about=about, launches=launches)
    errors = Surface(whole).errors()
    about = about.model_copy(update={"noise": noise(whole), "flat": flat(errors)})
    return Recording(name=whole.name, about=about, launches=launches), errors, left_out


def outside(record: TrialRecord, about: Description, only: str | None) -> bool:
    return only is not None and not expression.parse(only).holds({**about.defaults, **record.configuration.values})


def _is_text(one: object) -> bool:
    return isinstance(one, str)


def report(found: Recording, errors: Sequence[Error], left_out: Mapping[str, int]) -> Iterator[str]:
    (kind,) = found.about.traffic
    yield f"{len(found.launches)} launches of {len(found.distinct)} configurations, {len(found.levels(kind))} levels each."
    yield from (f"Left out {count}: {why}" for why, count in left_out.items())
    if not found.about.noise:
        yield "No configuration was launched twice: the noise between launches is not known."
    for level, spread in found.about.noise.items():
        told = ", ".join(f"{name} {getattr(spread, name):.1%}" for name in ("rates", "ttft", "tpot", "e2e"))
        yield f"Noise of {level} between launches of one configuration, on {spread.degrees} degrees of freedom: {told}."
    yield "Cross-validated, a configuration left out: median error, root mean square, and that of answering the mean."
    for one in errors:
        verdict = "" if one.informed else "  no better than the mean"
        numbers = f"{one.median:7.1%} {one.root_mean_square:8.1%} {one.of_mean:8.1%}"
        yield f"  {one.level or 'launch':24} {one.metric:10} {numbers}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the study's folder in its store, or its ledger")
    parser.add_argument("out", type=Path, help="a .jsonl file; its description goes beside it")
    parser.add_argument("--study", type=Path, help="the study file; by default the one beside the ledger")
    parser.add_argument("--traffic", default="chat", help="what the recording calls the study's traffic")
    parser.add_argument("--only", help="a condition that leaves out launches, e.g. 'max_num_seqs >= 64'")
    parser.add_argument("--device-memory-gib", type=float, help="where no packaged recording knows the device")
    given = parser.parse_args()
    ledger = given.source / history.FILE if given.source.is_dir() else given.source
    try:
        if given.out.suffix != ".jsonl":
            raise AutotuneError(f"A recording is a .jsonl file, and {given.out} is none.")
        study = given.study or ledger.with_name("study.yaml")
        found, errors, left_out = recording(ledger, study, given.traffic, given.only, given.device_memory_gib)
    except AutotuneError as error:
        raise SystemExit(str(error)) from error
    given.out.write_text("".join(json.dumps(one.model_dump(mode="json")) + "\n" for one in found.launches))
    given.out.with_suffix(".json").write_text(json.dumps(found.about.model_dump(mode="json"), indent=2) + "\n")
    print(*report(found, errors, left_out), sep="\n")


if __name__ == "__main__":
    main()
