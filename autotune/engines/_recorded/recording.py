"""A recording: the launches of one real engine on one real device, and what is known about them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from pydantic import Field, ValidationError

from autotune.errors import InvalidInput, Mistake, NotFound, nearest
from autotune.feasibility.memory import MemoryModel
from autotune.models import ModelFacts
from autotune.trial import Frozen, Value

FOLDER = Path(__file__).parents[2] / "data" / "recorded"
"""The recordings that come with the package."""


class Percentiles(Frozen):
    """Milliseconds over finished requests."""

    p50: float
    p90: float
    p95: float
    p99: float


class Level(Frozen):
    """One load level as it was measured; field names are the file's own, `rps`, `out_tps` and `tot_tps` per second of `span`."""

    kind: str
    rate: float | None
    conc: int | None
    n: int
    ok: int
    cut: int
    err: int
    span: float
    rps: float
    out_tps: float
    tot_tps: float
    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    joule: float
    mem_gib: float
    preempt: float
    hit: float
    took_s: float | None = None
    """Seconds of the launch that the level took: warm-up, window, drain and its share of what lay between the levels.

    None where only the span is known.
    """

    @property
    def key(self) -> Mapping[str, Value]:
        """The level as a measurement's row names it."""
        return {"request_rate": self.rate} if self.rate is not None else {"concurrency": self.conc}

    @property
    def name(self) -> str:
        return f"{self.kind}/{'rate' if self.rate is not None else 'concurrency'}/{self.rate or self.conc:g}"


class LaunchRecord(Frozen):
    """One launch: seconds from start to ready and in all, and what it measured. `error` is set when it could not start."""

    idx: int
    config: Mapping[str, Value]
    gpu: int = 0
    start_s: float
    total_s: float
    kv_tokens: int | None = None
    error: str | None = None
    levels: tuple[Level, ...] = ()


class Traffic(Frozen):
    """What one request of a kind of traffic holds: tokens of KV cache, and how many of them are shared between requests."""

    tokens_per_request: int
    shared_tokens: int
    input_tokens: int
    output_tokens: int


class Noise(Frozen):
    """Relative standard deviations of one level between launches of one configuration: of rates, and of the 99th percentiles.

    `degrees` is how many independent differences they were fitted on: launches less configurations.
    """

    rates: float
    ttft: float
    tpot: float
    e2e: float
    degrees: int


class Description(Frozen):
    """The recording's sidecar file: what was measured on what."""

    engine: str
    device: str
    device_memory_gib: float
    measured: str
    setup: str
    imports_s: float
    """Seconds of a start before the engine reads its flags; what a refused configuration costs."""
    max_model_len: int
    model: ModelFacts
    defaults: Mapping[str, Value]
    traffic: Mapping[str, Traffic]
    noise: Mapping[str, Noise] = Field(default_factory=dict)
    """Of each level by its name; empty when no configuration was launched twice."""
    noisy: bool = False
    """Whether the surface between the launches fits their noise, instead of going through each of them."""
    flat: tuple[str, ...] = ()
    """`LEVEL FAMILY` of what the launches cannot tell apart from its mean: the surface then answers the mean between them."""


class Recording(Frozen):
    """All launches of one file with its description."""

    name: str
    about: Description
    launches: tuple[LaunchRecord, ...] = Field(min_length=1)

    def resolve(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values with the recorded engine's defaults filled in.

        As in vLLM, `max_num_batched_tokens` alone lowers the default of `max_num_seqs`.
        """
        full = {**self.about.defaults, **values}
        if "max_num_seqs" not in values:
            full["max_num_seqs"] = min(full["max_num_seqs"], full["max_num_batched_tokens"])
        return full

    def find(self, values: Mapping[str, Value]) -> LaunchRecord | None:
        """The launch of exactly this configuration, whether or not it spells its defaults out."""
        wanted = self.resolve(values)
        return next((launch for launch in self.distinct if self.resolve(launch.config) == wanted), None)

    @functools.cached_property
    def distinct(self) -> tuple[LaunchRecord, ...]:
        """One launch a configuration, in the order measured: the mean of those that were launched several times."""
        return tuple(mean_of(group) if len(group) > 1 else group[0] for group in self.repeats)

    @property
    def repeats(self) -> tuple[tuple[LaunchRecord, ...], ...]:
        """The launches of each configuration; those that could not start are kept only where none of them could."""
        groups: list[list[LaunchRecord]] = []
        for launch in self.launches:
            same = (group for group in groups if self.resolve(group[0].config) == self.resolve(launch.config))
            found = next(same, None)
            if found is None:
                groups.append([launch])
            else:
                found.append(launch)
        return tuple(tuple([launch for launch in group if launch.levels] or group) for group in groups)

    def seen(self, parameter: str) -> tuple[Value, ...]:
        """Every value of a parameter that was measured, the default among them."""
        values = {self.resolve(launch.config)[parameter] for launch in self.launches}
        return tuple(sorted(values, key=lambda value: (isinstance(value, str), value)))

    def levels(self, kind: str) -> tuple[Level, ...]:
        """The load levels of a kind of traffic, in the order they were measured."""
        first = next(launch for launch in self.launches if launch.levels)
        return tuple(level for level in first.levels if level.kind == kind)

    def memory(self) -> MemoryModel:
        """The memory bound of the recorded device and model, calibrated by the recorded launches."""
        about = self.about
        model = MemoryModel(
            about.model,
            about.device_memory_gib,
            about.max_model_len,
            default_utilization=about.defaults["gpu_memory_utilization"],
            default_batched_tokens=about.defaults["max_num_batched_tokens"],
            default_seqs=about.defaults["max_num_seqs"],
        )
        for launch in self.launches:
            if launch.kv_tokens is not None:
                model = model.calibrated(self.resolve(launch.config), launch.kv_tokens)
        return model


def mean_of(launches: Sequence[LaunchRecord]) -> LaunchRecord:
    """The geometric mean of launches of one configuration, field by field; counts are the arithmetic mean, and rounded."""
    first = launches[0]
    tokens = [launch.kv_tokens for launch in launches if launch.kv_tokens is not None]
    seconds = {name: _mean([getattr(launch, name) for launch in launches]) for name in ("start_s", "total_s")}
    levels = tuple(_mean_level([launch.levels[index] for launch in launches]) for index in range(len(first.levels)))
    return first.model_copy(update={**seconds, "levels": levels, "kv_tokens": round(_mean(tokens)) if tokens else None})


def _mean_level(levels: Sequence[Level]) -> Level:
    def of(name: str) -> list[float]:
        return [getattr(level, name) for level in levels]

    took = {} if any(level.took_s is None for level in levels) else {"took_s": _mean(of("took_s"))}
    fields = {name: _mean(of(name)) for name in ("span", "rps", "out_tps", "tot_tps", "joule", "mem_gib")}
    counts = {name: round(sum(of(name)) / len(levels)) for name in ("n", "ok", "cut", "err")}
    shares = {name: sum(of(name)) / len(levels) for name in ("preempt", "hit")}
    latencies = {
        family: Percentiles(
            **{name: _mean([getattr(getattr(one, family), name) for one in levels]) for name in Percentiles.model_fields}
        )
        for family in ("ttft", "tpot", "e2e")
    }
    return levels[0].model_copy(update={**fields, **counts, **shares, **latencies, **took})


def _mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > 0 else math.fsum(values) / len(values)


@functools.lru_cache(maxsize=8)
def load(data: str) -> Recording:
    """The recording of a packaged name or of a JSONL file with a `.json` description of the same stem beside it.

    Raises NotFound or InvalidInput.
    """
    path = Path(data) if data.endswith(".jsonl") else FOLDER / f"{data}.jsonl"
    sidecar = path.with_suffix(".json")
    if not path.is_file() or not sidecar.is_file():
        raise NotFound(_unknown(data, path, sidecar))
    try:
        about = Description.model_validate_json(sidecar.read_bytes())
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        return Recording(name=path.stem, about=about, launches=tuple(LaunchRecord(**orjson.loads(line)) for line in lines))
    except (ValidationError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise InvalidInput([Mistake(path="data", problem=f"The recording cannot be read: {first}.", file=str(path))]) from error


def _unknown(data: str, path: Path, sidecar: Path) -> str:
    if path.is_file():
        return f"The recording {path} needs its description {sidecar.name} beside it."
    packaged = sorted(file.stem for file in FOLDER.glob("*.jsonl"))
    close = nearest(data, packaged)
    hint = f" Did you mean {close!r}?" if close else ""
    return f"There is no recording {data!r}; the package has {', '.join(packaged)}, and a path must end in .jsonl.{hint}"
