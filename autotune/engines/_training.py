"""A training run as a session: starts it, reads its steps while it runs, begins it again with another seed, ends it.

An engine gives it a launch whose first run writes `steps-0.jsonl` in the trial's folder, a function that turns one line of
that file into a Step, and a function that puts another seed into a launch.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from autotune import gpu, models, process
from autotune.engines import _learner_model
from autotune.engines._milestones import Clock, Milestones
from autotune.engines._training_log import death
from autotune.engines.base import Context, Diagnosis, EngineOptions, Launch, Step, TrainingSession
from autotune.errors import Mistake, NotFound
from autotune.logs import LogReader, tail
from autotune.trial import FailureKind, Phase, TrialFailed, Value

FIRST_STEPS = "steps-0.jsonl"
HUNG_S = 20.0
"""How long a driver may live on after its log said something fatal, before it is taken for hung."""
_GIB = 1 << 30


class TrainingOptions(EngineOptions):
    """What both training engines take besides the common options."""

    reward: str | None = None
    """The reward function: `module.function` for TRL, `file.py:function` for verl; a synthetic model brings its own."""
    dataset: str | None = None
    """Prompts: a folder, a file or a hub name; a synthetic model brings its own."""
    total_steps: int = Field(default=1000, ge=1)
    """The horizon of the learning-rate schedule; the workload ends the run when it has the steps it wants."""
    processes: int = Field(default=1, ge=1)
    """Training processes, one a GPU."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each process. More than the free cores makes OpenMP spin and a step tens of times slower."""
    cpu: bool = False
    """Train without a GPU."""


def local(name: str) -> str:
    """What a trial is given for a file or folder of the user's: a trial runs in a folder of its own, where a relative path leads
    nowhere. A name that is not on this machine, as a hub's, stays as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if name and path.exists() else name


def faults(options: TrainingOptions, *data: str) -> Iterator[Mistake]:
    """What is wrong with a training's model and files as far as this machine can tell. `data` are the parameters that name
    the training data, which a study may fix instead of giving a `dataset`."""
    try:
        synthetic = _learner_model.size_of(options.model) is not None
    except NotFound as error:
        yield Mistake("model", str(error))
        return
    wrong = [] if synthetic else list(models.faults(options.model))
    yield from wrong
    if not synthetic and not wrong and options.dataset is None and options.fixed.keys().isdisjoint(data):
        yield Mistake("", "A model that is not synthetic needs a 'dataset'.")
    if options.dataset is not None:
        yield from missing_file("dataset", options.dataset)


def horizon_faults(options: TrainingOptions, *names: str) -> Iterator[Mistake]:
    """Mistakes for fixed parameters that would set how long a run goes on, which a trial sets itself."""
    for name in names:
        if name in options.fixed:
            problem = (
                "The workload says how long a run is measured, and engine.total_steps for how many steps its schedule is made."
            )
            yield Mistake(f"fixed.{name}", problem)


def missing_file(option: str, name: str | Path) -> Iterator[Mistake]:
    """A mistake for a name that is a path and leads nowhere; hub names cannot be told from here."""
    path = Path(name).expanduser()
    is_path = isinstance(name, Path) or path.suffix or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
    if is_path and not path.exists():
        yield Mistake(option, f"There is no file {name}.")


@dataclass(frozen=True)
class Begin:
    """The trainer's word that it starts to train: what it runs with."""

    effective: Mapping[str, Value]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Dialect:
    """What an engine knows about its own runs. `read` returns None for a line that says nothing."""

    read: Callable[[Mapping[str, Any]], Step | Begin | None]
    reseed: Callable[[Launch, int], Launch]
    diagnose: Callable[[str, int | None], Diagnosis | None]
    ready_at_first_step: bool = False
    """For a trainer that says nothing before its first step."""
    milestones: Milestones = ()
    """What lines of the log end the phases of the start."""
    fatal: str | None = None
    """Log lines after which a driver that lives on is hung, as a regular expression."""
    leftovers: tuple[Path, ...] = ()
    """Folders to remove at the end."""


class LaunchedTraining(TrainingSession):
    """A training run in a process tree of its own."""

    def __init__(self, launch: Launch, context: Context, options: TrainingOptions, dialect: Dialect) -> None:
        self._first, self._context, self._options, self._dialect = launch, context, options, dialect
        self._runs = 0
        self._begin: Begin | None = None
        self._unread: list[Step] = []
        self._phase = Phase.START
        self._fatal_at: float | None = None
        self._trained = False
        """Whether a step was made: some arguments are refused only when the first one reads them."""
        self.model = options.model
        # Made before the launch: what the GPUs hold now is their idle baseline.
        self._gpus = gpu.Sampler(context.gpus, lambda: self._process.members()) if context.gpus else None
        self._start(launch)
        self._memory = process.PeakMemory(lambda: self._process.members())
        self._memory.__enter__()
        if self._gpus is not None:
            self._gpus.__enter__()

    def _start(self, launch: Launch) -> None:
        run = self._runs
        self._runs += 1
        self._begin, self._unread, self._phase = None, [], Phase.START
        steps = FIRST_STEPS.replace("0", str(run))
        argv = tuple(part.replace(FIRST_STEPS, steps) for part in launch.argv)
        env = {name: value.replace(FIRST_STEPS, steps) for name, value in launch.env.items()}
        self._log = self._context.folder / f"training-{run}.log"
        self._lines = LogReader(self._context.folder / steps)
        self._began = time.monotonic()
        self._words, self._fatal_at = LogReader(self._log), None
        self._clock = Clock(self._dialect.milestones)
        self._process = process.start(
            argv, env=env, cwd=self._context.folder, log=self._log, tag=self._context.tag, cpus=self._context.cpus
        )

    def wait_ready(self) -> Mapping[str, Value]:
        deadline = self._began + self._options.start_timeout_s
        while not self._trains():
            self.check_alive()
            if time.monotonic() > deadline:
                raise TrialFailed(
                    FailureKind.START_TIMEOUT,
                    Phase.START,
                    f"No training step began within {self._options.start_timeout_s:g} s.",
                    *tail(self._log, 3),
                    advice="Raise engine.start_timeout_s if the model takes that long to load.",
                )
            time.sleep(0.1)
        self._listen()
        self._clock.end("first_step" if self._dialect.ready_at_first_step else "start")
        self._phase = Phase.MEASURE
        begin = self._begin or Begin({}, {})
        return {
            "seconds": dict(self._clock.seconds),
            "effective": dict(begin.effective),
            "versions": dict(begin.versions),
        }

    def _trains(self) -> bool:
        self._read()
        return bool(self._unread) or (self._begin is not None and not self._dialect.ready_at_first_step)

    def _read(self, final: bool = False) -> None:
        for line in self._lines.lines(final):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found = self._dialect.read(record)
            if isinstance(found, Begin):
                self._begin = found
            elif found is not None:
                self._unread.append(found)
                self._trained = True

    def new_steps(self) -> tuple[Step, ...]:
        self._read()
        steps, self._unread = tuple(self._unread), []
        return steps

    def ended(self) -> bool:
        return self._process.returncode() == 0

    def check_alive(self) -> None:
        returncode = self._process.returncode()
        if returncode is None and self._hung():
            raise death(self._log, None, self._phase, self._dialect.diagnose, self._trained)
        if returncode is None or (returncode == 0 and self._phase is Phase.MEASURE):
            return
        self._read(final=True)
        if self._unread and self._phase is Phase.MEASURE:
            return
        raise death(self._log, returncode, self._phase, self._dialect.diagnose, self._trained)

    def _hung(self) -> bool:
        """Whether the log said something fatal a while ago, and still the driver lives."""
        self._listen()
        return self._fatal_at is not None and time.monotonic() - self._fatal_at > HUNG_S

    def _listen(self) -> None:
        """Read what the log says since the last time."""
        for line in self._words.lines():
            if self._phase is Phase.START:
                self._clock.read(line)
            if self._dialect.fatal is not None and self._fatal_at is None and re.search(self._dialect.fatal, line):
                self._fatal_at = time.monotonic()

    def restart(self, seed: int) -> None:
        self._process.stop(self._options.stop_timeout_s)
        self._start(self._dialect.reseed(self._first, seed))
        self.wait_ready()

    def resources(self) -> Mapping[str, float]:
        peak = self._memory.peak_bytes
        main = {} if peak is None else {"peak_memory_gib": peak / _GIB}
        return {**main, **(self._gpus.totals() if self._gpus is not None else {})}

    def resources_between(self, begin: float, end: float) -> Mapping[str, float]:
        return self._gpus.between(begin, end) if self._gpus is not None else {}

    def stop(self) -> Mapping[str, Value]:
        self._memory.close()
        if self._gpus is not None:
            self._gpus.close()
        report = self._process.stop(self._options.stop_timeout_s)
        for folder in (self._context.scratch, *self._dialect.leftovers):
            shutil.rmtree(folder, ignore_errors=True)
        return {**report.facts, "survivors": report.survivors}


def finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that have a finite value."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
