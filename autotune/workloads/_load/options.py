"""The `workload:` section of kind http: which traffic, at which load, over which window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from autotune.errors import WrongValue
from autotune.trial import Frozen, Scalar, Value
from autotune.workloads._load.climb import parse_bound
from autotune.workloads._load.presets import PRESETS
from autotune.workloads.base import WorkloadOptions


def _one_of(model: Frozen, *names: str) -> None:
    """Raise ValueError unless exactly one of the fields is set."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise ValueError(f"needs exactly one of {', '.join(names)}; {', '.join(given) if given else 'none'} is given")


class Bell(Frozen):
    """A truncated distribution: draws outside `min` to `max` are clamped. `mean` and `std` are those of the whole curve."""

    mean: PositiveFloat
    std: float = Field(ge=0)
    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class LengthDistribution(Frozen):
    """How long something is: `128`, `{uniform: [64, 192]}`, `{normal: {mean, std, min, max}}` or `{lognormal: ...}`."""

    exactly: PositiveInt | None = None
    uniform: tuple[PositiveInt, PositiveInt] | None = None
    normal: Bell | None = None
    lognormal: Bell | None = None

    @model_validator(mode="after")
    def _valid(self) -> Self:
        _one_of(self, "exactly", "uniform", "normal", "lognormal")
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform needs [low, high]; {self.uniform[0]} is above {self.uniform[1]}")
        return self

    @property
    def mean(self) -> float:
        """The mean, without the effect of clamping."""
        if self.exactly is not None:
            return float(self.exactly)
        if self.uniform is not None:
            return sum(self.uniform) / 2
        bell = self.normal or self.lognormal
        assert bell is not None
        return bell.mean

    @property
    def highest(self) -> int:
        """The longest that can be drawn."""
        if self.exactly is not None:
            return self.exactly
        if self.uniform is not None:
            return self.uniform[1]
        bell = self.normal or self.lognormal
        assert bell is not None
        return bell.max


def _length(value: Any) -> Any:
    return {"exactly": value} if isinstance(value, int) and not isinstance(value, bool) else value


Length = Annotated[LengthDistribution, BeforeValidator(_length)]


class SharedPrefix(Frozen):
    """Every prompt begins with one of `count` prefixes of `tokens` tokens, beside its own input tokens."""

    tokens: PositiveInt
    count: PositiveInt = 1


class Traffic(Frozen):
    """What is asked. A dataset or a trace brings its own lengths; without one, content is random."""

    input_tokens: Length | None = None
    output_tokens: Length | None = None
    shared_prefix: SharedPrefix | None = None
    turns: Length = LengthDistribution(exactly=1)
    """Turns of a conversation; each turn's prompt repeats all earlier ones with their answers."""
    think_s: float = Field(default=0.0, ge=0)
    """Pause between an answer and the next turn."""
    dataset: Path | None = None
    """JSONL: `prompt`, `messages` or `prompt_token_ids`, and `output_tokens` (or the option `output_tokens` for all)."""
    trace: Path | None = None
    """JSONL: `timestamp` (milliseconds), `input_length`, `output_length` and optionally `hash_ids`."""
    trace_block_tokens: PositiveInt = 512
    """Tokens that one of the trace's `hash_ids` stands for."""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.dataset is not None and self.trace is not None:
            raise ValueError("needs a dataset or a trace, not both")
        recorded = self.dataset is not None or self.trace is not None
        if not recorded and (self.input_tokens is None or self.output_tokens is None):
            raise ValueError("needs input_tokens and output_tokens, or a dataset, or a trace")
        if recorded and (self.turns.highest > 1 or self.shared_prefix is not None or self.input_tokens is not None):
            raise ValueError("a dataset or trace brings its own prompts: leave out input_tokens, turns and shared_prefix")
        return self


class Arrival(Frozen):
    """How open-loop arrivals are spaced: `poisson`, `constant`, or gamma with a burstiness (1 is Poisson, less is burstier)."""

    burstiness: PositiveFloat | None = None
    """None is constant spacing."""

    @property
    def dispersion(self) -> float:
        """Variance over mean of the count in a long window: the squared coefficient of variation of the gaps (Cox, Renewal
        Theory, 1962)."""
        return 0.0 if self.burstiness is None else 1 / self.burstiness


def _arrival(value: Any) -> Any:
    named = {"poisson": {"burstiness": 1.0}, "constant": {"burstiness": None}}
    if isinstance(value, str) and value not in named:
        raise ValueError(f"{value!r} is none of poisson, constant, {{burstiness: number}}")
    return named[value] if isinstance(value, str) else value


class SloClimb(Frozen):
    """Find the highest request rate that meets the constraints: double until one breaks or throughput stops, then bisect.

    In a trial of the search, whose study asks for numbers of the whole trial alone, a rate above a good one is left as soon as it
    has surely broken a percentile of `ttft_ms`, and has no numbers.
    """

    constraints: tuple[str, ...] = Field(min_length=1)
    """`metric <= limit` or `metric >= limit`, e.g. `ttft_ms.p99 <= 500`."""
    start: PositiveFloat
    """First request rate."""
    max_steps: int = Field(default=8, ge=2)
    precision: float = Field(default=0.1, gt=0)
    """Stop when the broken rate is within this share above the last good one."""

    @field_validator("constraints")
    @classmethod
    def _parsed(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            parse_bound(text)
        return texts


class Load(Frozen):
    """One entry of `load`: an open-loop rate, a closed-loop concurrency, a trace replay speed, or a climb."""

    request_rate: PositiveFloat | None = None
    arrival: Annotated[Arrival, BeforeValidator(_arrival)] = Arrival(burstiness=1.0)
    concurrency: PositiveInt | None = None
    replay: PositiveFloat | None = None
    """The trace's own timestamps, this many times as fast."""
    slo_climb: SloClimb | None = None

    @model_validator(mode="after")
    def _valid(self) -> Self:
        _one_of(self, "request_rate", "concurrency", "replay", "slo_climb")
        return self

    @property
    def level(self) -> Mapping[str, Scalar]:
        """The key its row carries; empty for a climb, which finds its own."""
        for name in ("request_rate", "concurrency", "replay"):
            if getattr(self, name) is not None:
                return {name: getattr(self, name)}
        return {}


class Window(Frozen):
    """When is measured. Seconds."""

    warm_up_s: float = Field(default=10.0, ge=0)
    """Longest warm-up of a level; it ends earlier once TTFT is flat, and later when a closed loop's first wave takes longer."""
    measure_s: PositiveFloat = 20.0
    deadline_s: PositiveFloat = 60.0
    """A request unfinished this long after its intended arrival is cut and counted as unfinished."""


class HttpOptions(WorkloadOptions):
    """The whole section."""

    kind: Literal["http"] = "http"
    preset: Literal["chat", "offline", "code-completion", "shared-prefix", "agents"] | None = None
    traffic: Traffic
    load: tuple[Load, ...] = Field(min_length=1)
    window: Window = Window()
    endpoint: Literal["completions", "chat"] = "completions"
    goodput: Mapping[Literal["ttft_ms", "tpot_ms", "e2e_ms"], PositiveFloat] = Field(default_factory=dict)
    """Bounds that a request must meet on its own to count as good."""
    min_finished_share: float = Field(default=0.95, gt=0, le=1)
    ignore_eos: bool = True
    """Generate exactly the asked number of tokens."""
    body: Mapping[str, Value] = Field(default_factory=dict)
    """Further fields of every request, e.g. `{temperature: 0}`."""
    clients: PositiveInt | None = None
    """Client processes; None chooses by the machine's cores."""
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """A preset fills what the section leaves out."""
        if not isinstance(given, Mapping) or given.get("preset") not in PRESETS:
            return given
        return {**PRESETS[given["preset"]], **given}

    @model_validator(mode="after")
    def _valid(self) -> Self:
        levels = [load.level for load in self.load]
        for index, load in enumerate(self.load):
            if load.slo_climb is None and load.level in levels[:index]:
                raise WrongValue("This load level stands twice in the list.", "load", index)
            if load.slo_climb is not None and {} in levels[:index]:
                problem = "A second climb would overwrite the first one's rate, which is a number of the whole trial."
                raise WrongValue(f"{problem} Put all constraints into one climb, or use two studies.", "load", index)
            if load.replay is not None and self.traffic.trace is None:
                raise WrongValue("A load of replay needs a trace.", "load", index, "replay")
            self._some_request(index, load)
        return self

    def _some_request(self, index: int, load: Load) -> None:
        """Raise WrongValue for a level whose window sees fewer than one request on average: many a trial could not be scored."""
        climb, seconds = load.slo_climb, self.window.measure_s
        rate = load.request_rate if climb is None else climb.start
        if rate is None or rate * seconds >= 1:
            return
        place = ("request_rate",) if climb is None else ("slo_climb", "start")
        problem = f"A window of {seconds:g} s sees fewer than one request at this rate, {rate * seconds:.2g} on average."
        remedy = f"Raise the rate, or window.measure_s to {math.ceil(1 / rate)} or more."
        raise WrongValue(f"{problem} {remedy}", "load", index, *place)
