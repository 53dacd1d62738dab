"""Health bands of the serving guides, shown beside what was measured. Rules of thumb, never constraints or scores.

Where a measurement contradicts a band, the measurement is right: on an H200 the fastest configurations filled the KV cache
and queued far more than 32 requests at full load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autotune.trial import TrialRecord


@dataclass(frozen=True, slots=True)
class Band:
    """A range that guides call healthy. `place` says whether `name` is a metric or an engine parameter."""

    name: str
    place: Literal["metric", "parameter"]
    low: float | None
    high: float | None
    outside: str
    """What a value outside suggests."""


BANDS: tuple[Band, ...] = (
    Band("kv_cache_usage", "metric", None, 0.95, "The KV cache is full: more memory, shorter lengths or fewer sequences."),
    Band("queue_depth", "metric", None, 32, "Requests wait inside the engine: the load is above its capacity."),
    Band("prefix_cache_hit_rate", "metric", 0.8, None, "Prompts share little, or the cache evicts what they share."),
    Band(
        "gpu_memory_utilization",
        "parameter",
        0.85,
        0.95,
        "Below leaves memory idle on a GPU of its own; above risks failing under load.",
    ),
    Band("tpot_ms.mean", "metric", None, 30, "Each reader gets fewer than 33 tokens per second."),
)
"""Sources: the serving guides' KV blocks in use < 95 %, waiting < 32, prefix reuse > 0.8, memory 0.85-0.95, TPOT < 30 ms."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured value against its band; `level` is the load level it was worst at."""

    band: Band
    value: float
    level: str
    inside: bool


def readings(record: TrialRecord) -> tuple[Reading, ...]:
    """Every band that the trial has a value for, at the worst load level; a band without a value is left out."""
    found = [_metric(record, band) if band.place == "metric" else _parameter(record, band) for band in BANDS]
    return tuple(reading for reading in found if reading is not None)


def within(band: Band, value: float) -> bool:
    """Whether a value lies in the band."""
    return (band.low is None or value >= band.low) and (band.high is None or value <= band.high)


def text(band: Band) -> str:
    """The band in words."""
    if band.low is None:
        return f"at most {band.high:g}"
    return f"at least {band.low:g}" if band.high is None else f"{band.low:g} to {band.high:g}"


def _metric(record: TrialRecord, band: Band) -> Reading | None:
    rows = record.measurement.rows if record.measurement else ()
    values = [(row.metrics[band.name], _level(row.level)) for row in rows if row.invalid is None and band.name in row.metrics]
    if not values:
        return None
    value, level = min(values) if band.high is None else max(values)
    return Reading(band, value, level, within(band, value))


def _parameter(record: TrialRecord, band: Band) -> Reading | None:
    value = record.configuration.values.get(band.name, record.effective.get(band.name))
    if record.measurement is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return Reading(band, float(value), "", within(band, float(value)))


def _level(level: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in level.items())
