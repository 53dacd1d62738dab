"""The contract of an engine: what is launched and tuned.

Call order within one trial, all of it inside `evaluate`:

    engine.gpus_needed(configuration)      how many GPUs the executor leases
    engine.launch(configuration, context)  pure: the exact command, environment and files; `autotune check` prints it
      .within(context)                     writes its files and shows it only what the trial may use
    engine.open(launch, context)           starts it and returns a Session at once
      session.wait_ready()                 blocks until it serves (or trains); returns start-up facts
      ... the workload works on the session ...
      session.answers(prompts)             only where a trial is measured again and its answers are compared
      session.stop()                       idempotent: ends the whole tree and proves that it is gone
    engine.diagnose(log, returncode)       only after a failure: the log's decisive lines → kind and advice

A new engine is one file in this folder whose module-level name `engine` is the Engine subclass; its file name is its kind.
What it opens is a Session, whose contract is in `autotune.session` because workloads are written against that alone; whoever
writes an engine finds both here.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from autotune import gpu, models
from autotune.bar import Bar
from autotune.errors import Mistake
from autotune.feasibility.memory import MemoryModel
from autotune.session import Serves, Session, Step, TrainingSession
from autotune.standby import Ahead
from autotune.trial import Configuration, FailureKind, Frozen, Origin, Value

__all__ = [
    "Context",
    "Diagnosis",
    "Engine",
    "EngineOptions",
    "Flag",
    "Identity",
    "Launch",
    "Serves",
    "Session",
    "Step",
    "TrainingSession",
    "Verdict",
]


class EngineOptions(Frozen):
    """The `engine:` section of a study. An engine subclasses this to add options of its own."""

    kind: str
    model: str
    """`synthetic:NAME`, a local path, or a hub name."""
    fixed: Mapping[str, Value] = Field(default_factory=dict)
    """Parameters every trial gets, by the engine's own names."""
    env: Mapping[str, str] = Field(default_factory=dict)
    python: Path | None = None
    """The interpreter of the engine's own environment; None is the tuner's."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    stop_timeout_s: float = Field(default=30.0, gt=0)
    """How long the engine may take to end by itself before it is killed. SGLang is killed at once."""


class Identity(Frozen):
    """What the installed engine is, for the record and for the trial cache's key."""

    kind: str
    version: str
    python: str
    device: str
    """`cpu`, or the GPU's product name."""
    packages: Mapping[str, str] = Field(default_factory=dict)
    variables: Mapping[str, str] = Field(default_factory=dict)
    """What the shell tells the engine beside the study, such as `VLLM_USE_FLASHINFER_SAMPLER=0`."""


class Flag(Frozen):
    """One flag of the installed engine, read from its own argument definition."""

    name: str
    """The parameter's name with underscores, e.g. `max_num_seqs`."""
    option: str
    """The full option string, e.g. `--max-num-seqs`."""
    negation: str | None = None
    """`--no-...` where the flag has one."""
    type: str = "str"
    """`int`, `float`, `str`, `bool`, `json` or `list`."""
    choices: tuple[Value, ...] | None = None
    default: Value = None
    low: float | None = None
    high: float | None = None
    help: str = ""


class Context(Frozen):
    """What one attempt at a trial may use; nothing else of the machine is its own."""

    study: str
    begun: float = 0.0
    """Unix seconds at which the study began: its name may have been another's before."""
    trial: int
    attempt: int = 1
    tag: str
    """Put in the environment of every process of the trial as AUTOTUNE_TAG; the reaper finds processes by it."""
    folder: Path
    """Kept: logs, launch line, raw requests."""
    scratch: Path
    """Removed when the trial ends."""
    cache: Path
    """Shared between the trials of a store: compile caches, synthetic models."""
    gpus: tuple[int, ...] = ()
    """Device indices leased to the trial; empty on a machine without GPUs."""
    cpus: tuple[int, ...] = ()
    """Cores the engine may run on; empty for all."""
    seed: int = 0
    origin: Origin = Origin.SEARCH
    """Why the trial runs: one that repeats a measurement is never cut short for being slower than others."""
    bar: Bar | None = None
    """What the trial has to be able to reach, or it is ended early; None for one that is measured whatever it reaches."""
    climb_from: float | None = None
    """Request rate at which a climb to the SLO begins; None is the load's own `start`."""

    @property
    def env(self) -> dict[str, str]:
        """Variables that show a process of the trial its GPUs and its scratch folder only, where engines keep sockets and leave
        them."""
        return {"TMPDIR": str(self.scratch), **(gpu.visible(self.gpus) if self.gpus else {})}


class Launch(Frozen):
    """The exact command of one trial. `argv` never passes through a shell; `files` are written below the trial's folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = Field(default_factory=dict)
    """Variables set beside the inherited, filtered environment."""
    files: Mapping[str, str] = Field(default_factory=dict)
    endpoint: str | None = None
    """`http://127.0.0.1:PORT` for a serving engine."""

    def within(self, context: Context) -> Launch:
        """The launch as it is to be opened: with the context's variables below its own. Makes the trial's folders, and writes
        the files there."""
        for folder in (context.folder, context.scratch):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            path = context.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return self.model_copy(update={"env": {**context.env, **self.env}})


class Diagnosis(Frozen):
    """What a dead or failing engine's log says."""

    kind: FailureKind
    evidence: tuple[str, ...]
    advice: str


class Verdict(Frozen):
    """The engine's own answer to a configuration without launching it: `refused` is None when it accepts.

    `resolved` holds the values that the engine would run with, defaults included.
    """

    refused: str | None = None
    resolved: Mapping[str, Value] = Field(default_factory=dict)


class Engine(ABC):
    """A tunable program. Construction is cheap and touches nothing outside the process."""

    kind: ClassVar[str]
    serves: ClassVar[Serves]
    Options: ClassVar[type[EngineOptions]] = EngineOptions

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    def check(self) -> Iterator[Mistake]:
        """What the options show to be wrong beyond their types, each at the path of an option: an interpreter, a model or a
        file that is not there. Launches nothing."""
        python = self.options.python
        if python is not None and shutil.which(python) is None:
            yield Mistake("python", f"There is no Python interpreter {python}.")

    @abstractmethod
    def identity(self) -> Identity:
        """What is installed. Raises MissingPrerequisite with the install line when the engine is not usable here."""

    @abstractmethod
    def launch(self, configuration: Configuration, context: Context) -> Launch:
        """The exact command for a configuration. Pure but for choosing a free port."""

    @abstractmethod
    def open(self, launch: Launch, context: Context) -> Session:
        """Start the launch and return at once."""

    def ahead(self, cache: Path) -> Ahead | None:
        """What an interpreter can import before it knows its launch, while another trial is measured; None for nothing.

        `cache` is the context's. Only the start of a serving engine (`ServingSession`) makes use of it.
        """
        return None

    def flags(self) -> Mapping[str, Flag]:
        """The installed engine's flags by parameter name; empty for an engine that has none."""
        return {}

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        """The engine's own cross-check of configurations, without a launch; one Verdict each. Unless an engine can be asked, a
        value that nobody sets is taken to be its flag's default."""
        defaults = {name: flag.default for name, flag in self.flags().items() if flag.default is not None}
        return [Verdict(resolved={**defaults, **self.options.fixed, **one.values}) for one in configurations]

    def unreported(self, values: Mapping[str, Value]) -> Mapping[str, str]:
        """Metrics that a trial with these values would not report, each with the reason in a sentence. A study cannot have such
        a one for a goal: what is missing is never taken for a number."""
        return {}

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        """Classify a failure from the engine's log. None when nothing decisive stands in it (the caller says crashed)."""
        return None

    def explicit(
        self, configuration: Configuration, cache: Path, effective: Mapping[str, Value] | None = None
    ) -> Mapping[str, Value]:
        """Every parameter and `env.NAME` that `launch` names for a configuration, addresses and seeds aside; exporters write it.

        `effective` is what a measured trial confirmed, with `device` (`cpu`, `cuda`); given it, nothing is asked of this machine,
        which may be another one.
        """
        return {**self.options.fixed, **configuration.values}

    def model_path(self, cache: Path) -> str:
        """What the engine is given as its model: a local folder (made when synthetic) or a hub name."""
        return self.options.model

    def model_digest(self, cache: Path) -> str:
        """Identifies what is loaded, not just its name; part of the trial cache's key."""
        return models.digest(self.options.model)

    def memory_model(self, resolved: Mapping[str, Value]) -> MemoryModel | None:
        """Predicts whether a configuration's memory can suffice, before any trial; None where nothing is known.

        `resolved` holds the values of the default configuration.
        """
        return None

    def incomparable(self) -> str | None:
        """Why the answers of a configuration cannot be compared with the default's; None for an engine whose sessions answer
        prompts and whose weights are real."""
        return f"the engine {self.kind} gives no log-probabilities"

    def remarks(self) -> str:
        """What a user should know about this engine on this machine; empty when there is nothing special."""
        return ""

    def gpus_needed(self, configuration: Configuration) -> int:
        """GPUs a trial of this configuration must be leased."""
        return 1
