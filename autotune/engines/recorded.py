"""Replays measured launches of a real engine on a simulated clock, so that a study of 1,000 trials runs in seconds.

Everything it returns says that it was recorded: the engine's version, the session's facts and the workload's facts.

Simulated seconds reach the trial's record as facts: `wait_ready`, the measurement and `stop` each carry `seconds` by
phase with `simulated: True`; `stop` has all phases of the life, that of a failed launch too, and is the one to keep.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field, field_validator

from autotune.engines._recorded.noise import Spread, noisy
from autotune.engines._recorded.recording import LaunchRecord, Level, load
from autotune.engines._recorded.surface import STOP_S, Outside, surface
from autotune.engines.base import Context, Engine, EngineOptions, Flag, Identity, Launch, Session, Verdict
from autotune.errors import AutotuneError
from autotune.feasibility.memory import MemoryModel
from autotune.trial import Configuration, FailureKind, Phase, TrialFailed, Value, digest_of

DEFAULT_RECORDING = "vllm-0.26.0-llama8b"


class RecordedOptions(EngineOptions):
    """`noise` is the relative standard deviation of rates between relaunches; latencies vary twice as much.

    None given takes the spread of the recording's own relaunches, or 0.03 where nothing was launched twice.
    """

    model: str = "recorded"
    data: str = DEFAULT_RECORDING
    """The name of a recording that comes with the package, or the path of a JSONL file with its description beside it."""
    interpolate: bool = True
    """Whether configurations between recorded ones are answered; if not they are refused."""
    noise: float | None = Field(default=None, ge=0, le=0.5)
    gpus: int = Field(default=0, ge=0)
    """GPUs a trial leases; 0 because a replay needs none."""
    faults: Mapping[FailureKind, float] = Field(default_factory=dict)
    """Share of launches that fail in a way, for tests. The configuration decides which, for a machine fault the attempt."""
    pace: float = Field(default=0.0, ge=0, le=1)
    """Real seconds slept for every simulated one."""

    @field_validator("data")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            load(value)
        except AutotuneError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("faults")
    @classmethod
    def _shares(cls, value: Mapping[FailureKind, float]) -> Mapping[FailureKind, float]:
        if any(share < 0 for share in value.values()) or sum(value.values()) > 1:
            raise ValueError("The shares of faults must be positive and add up to 1 at most")
        return value


class RecordedSession(Session):
    """One replayed launch. `levels` gives its noisy load levels; `spend` lets simulated time pass."""

    def __init__(self, options: RecordedOptions, configuration: Configuration, context: Context) -> None:
        self.options = options
        self.recording = load(options.data)
        self.model = f"recorded {self.recording.name}"
        self.configuration = configuration
        self.context = context
        self.seconds: dict[str, float] = {}
        self.launch: LaunchRecord | None = None

    def wait_ready(self) -> Mapping[str, Value]:
        found = self._found()
        failed = self._fault()
        if failed is not None:
            self.spend("start", found.start_s)
            raise TrialFailed(failed, Phase.START, f"The recorded engine was asked to fail as {failed}.")
        self.spend("start", found.start_s)
        if found.error is not None:
            kind = self._kind_of_failure()
            told = "Recorded" if found.idx >= 0 else "Predicted from the recording"
            raise TrialFailed(kind, Phase.START, f"{told}: {found.error}", advice=_ADVICE.get(kind, ""))
        self.launch = found
        return {
            "seconds": {"start": self.seconds["start"]},
            "simulated": True,
            "recorded": found.idx >= 0,
            "kv_tokens": found.kv_tokens,
            "effective": self.recording.resolve(self.configuration.values),
            "version": version(self.options.data),
        }

    def levels(self, kind: str, seconds: float | None = None) -> tuple[Level, ...]:
        """The load levels of a kind of traffic with this launch's noise on them; a noise of 0 replays the numbers.

        Measured for some `seconds` only, a level's own noise is larger, by the root of how many times as long it took.
        """
        assert self.launch is not None, "wait_ready comes first"
        random = np.random.default_rng(self._entropy("noise", self.context.seed, self.context.trial, self.context.attempt))
        relaunch = random.normal(0, 1)
        if seconds is not None:
            random = np.random.default_rng(self._entropy("probe", self.context.seed, self.context.trial, self.context.attempt))
        asked = [level for level in self.launch.levels if level.kind == kind]
        short = [1.0 if seconds is None else math.sqrt(max(1.0, level.span / seconds)) for level in asked]
        fitted = self.recording.about.noise
        spreads = [Spread.of(self.options.noise, fitted.get(level.name)) for level in asked]
        return tuple(
            noisy(level, spread, relaunch, random, more) for level, spread, more in zip(asked, spreads, short, strict=True)
        )

    def spend(self, phase: str, seconds: float) -> None:
        """Let simulated seconds of a phase pass."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        if self.options.pace:
            time.sleep(seconds * self.options.pace)

    def check_alive(self) -> None:
        return

    def stop(self) -> Mapping[str, Value]:
        if "stop" not in self.seconds:
            self.spend("stop", STOP_S)
        return {"seconds": dict(self.seconds), "simulated": True, "returncode": 0, "killed": 0}

    def resources(self) -> Mapping[str, float]:
        if self.launch is None or not self.launch.levels:
            return {}
        peak = max(level.mem_gib for level in self.launch.levels)
        found = {"peak_gpu_memory_gib": peak, "start_s": self.launch.start_s}
        return found if self.launch.kv_tokens is None else {**found, "kv_cache_tokens": float(self.launch.kv_tokens)}

    def _found(self) -> LaunchRecord:
        refused = refusal(self.options, self.configuration)
        if refused is not None:
            self.spend("start", self.recording.about.imports_s)
            raise TrialFailed(FailureKind.INVALID_CONFIG, Phase.START, refused)
        return surface(self.options.data).answer(self.configuration.values, self.options.interpolate)

    def _kind_of_failure(self) -> FailureKind:
        full = self.recording.resolve(self.configuration.values)
        small = surface(self.options.data).memory.too_small(full, slack_gib=0.0)
        return FailureKind.OUT_OF_MEMORY if small else FailureKind.CRASHED

    def _fault(self) -> FailureKind | None:
        drawn = np.random.default_rng(self._entropy("fault")).random()
        for kind, share in self.options.faults.items():
            at = drawn
            if not kind.deterministic:
                at = np.random.default_rng(self._entropy(kind, self.context.trial, self.context.attempt)).random()
            if at < share:
                return kind
            drawn -= 0 if not kind.deterministic else share
        return None

    def _entropy(self, *parts: Value) -> int:
        return int(digest_of([self.configuration.digest, *map(str, parts)]), 16)


class RecordedEngine(Engine):
    """Serves recorded measurements to the recorded workload; launches nothing."""

    kind = "recorded"
    serves = "recorded"
    Options = RecordedOptions
    options: RecordedOptions

    def identity(self) -> Identity:
        about = load(self.options.data).about
        return Identity(
            kind=self.kind,
            version=version(self.options.data),
            python=platform.python_version(),
            device=f"{about.device} (recorded)",
        )

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        """Nothing is started: the configuration travels to `open` in the launch's own variables."""
        values = {**self.options.fixed, **configuration.values}
        merged = Configuration(engine=configuration.engine, values=values)
        return Launch(argv=(), env={_CARRIER: merged.model_dump_json()})

    def open(self, launch: Launch, context: Context) -> RecordedSession:
        return RecordedSession(self.options, Configuration.model_validate_json(launch.env[_CARRIER]), context)

    def flags(self) -> Mapping[str, Flag]:
        recording = load(self.options.data)
        return {name: _flag(name, default, recording.seen(name)) for name, default in recording.about.defaults.items()}

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        return [self._verdict(configuration) for configuration in configurations]

    def memory_model(self, resolved: Mapping[str, Value]) -> MemoryModel:
        """Knows the model and the device only: what the recording itself calibrates is for the search to find out."""
        return replace(load(self.options.data).memory(), corrections=())

    def gpus_needed(self, configuration: Configuration) -> int:
        return self.options.gpus

    def _verdict(self, configuration: Configuration) -> Verdict:
        merged = Configuration(engine=self.kind, values={**self.options.fixed, **configuration.values})
        refused = refusal(self.options, merged)
        if refused is not None:
            return Verdict(refused=refused)
        return Verdict(resolved=load(self.options.data).resolve(merged.values))


def version(data: str) -> str:
    """Whose measurements a recording holds, e.g. `recorded vllm-0.26.0`; what they were measured on is the device's to say."""
    return f"recorded {load(data).about.engine}"


def refusal(options: RecordedOptions, configuration: Configuration) -> str | None:
    """Why the recorded engine would refuse the flags, or why the recording cannot answer; None when it can."""
    values = configuration.values
    recording = load(options.data)
    try:
        surface(options.data).check(values, options.interpolate)
    except Outside as error:
        return str(error)
    full = recording.resolve(values)
    batched, sequences = full["max_num_batched_tokens"], full["max_num_seqs"]
    if "max_num_seqs" in values and "max_num_batched_tokens" in values and batched < sequences:
        return f"max_num_batched_tokens ({batched}) must not be smaller than max_num_seqs ({sequences})."
    return None


def _flag(name: str, default: Value, seen: tuple[Value, ...]) -> Flag:
    option = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        return Flag(name=name, option=option, negation="--no-" + option[2:], type="bool", default=default)
    if isinstance(default, str):
        return Flag(name=name, option=option, type="str", choices=seen, default=default)
    kind = "int" if isinstance(default, int) else "float"
    return Flag(name=name, option=option, type=kind, default=default, low=min(seen), high=max(seen))


_CARRIER = "AUTOTUNE_RECORDED_CONFIGURATION"
_ADVICE = {FailureKind.OUT_OF_MEMORY: "Raise gpu_memory_utilization, lower max_num_batched_tokens, or store the KV cache in fp8."}

engine = RecordedEngine
