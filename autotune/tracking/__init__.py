"""MLflow: a parent run per study, a child run per trial, sent by a process of its own from what the ledger holds.

The ledger is the truth and MLflow a view of it, so a server that is down, slow or wrong costs nothing: what it has not
acknowledged is sent later, once. This module imports no MLflow and never raises to the run loop.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from autotune import ledger, process
from autotune.secrets import redact
from autotune.study import Study, TrackingSpec
from autotune.tracking.payload import key_of
from autotune.tracking.sender import DRIVER, EXPERIMENT, LIMITS, URI, target_of
from autotune.tracking.state import FOLDER, Request, State, Status, request_path, state_path
from autotune.trial import TrialRecord

__all__ = ["Tracker", "default_uri", "shown", "ui_command"]

Method = TypeVar("Method", bound=Callable[..., Any])
_RESTART_S = 15.0
"""Between two starts of a sender that died."""


def default_uri(store: Path) -> str:
    """The store's own database, which `autotune ui` opens."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


def shown(store: Path, spec: TrackingSpec) -> str:
    """Where a user finds a study's trials."""
    if spec.uri is None:
        return f"Compare the trials in MLflow: autotune ui --store {store}"
    return f"Compare the trials in MLflow: the experiment {spec.experiment!r} at {redact(spec.uri)}"


def ui_command(store: Path, uri: str | None = None, port: int = 5000) -> tuple[str, ...]:
    """The command that opens MLflow on a store; for a tracking server of one's own its address is enough."""
    where = uri or default_uri(store)
    address = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    return (sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", where, *address)


def _safe(otherwise: Any) -> Callable[[Method], Method]:
    """Keeps every problem inside: tracking may be late, it may not stop a study. `otherwise` is the answer then."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        def inner(self: Tracker, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                self.problem = redact(f"{type(error).__name__}: {error}")
                return otherwise

        return cast(Method, inner)

    return wrap


class Tracker:
    """One study's way to MLflow, seen from the run loop. Every call returns at once, `flush` and `close` within their time."""

    def __init__(self, store: Path, study: Study, uri: str | None = None, experiment: str | None = None) -> None:
        """`uri` and `experiment` default to the study's own `tracking` section, and that to a database in the store."""
        self.folder = store / study.name
        self.store = store
        self.study = study.name
        self.uri = uri or study.tracking.uri or default_uri(store)
        self.experiment = experiment or study.tracking.experiment
        self.problem: str | None = None
        self._process: process.Process | None = None
        self._started_at = 0.0
        self._due: set[str] = set()
        self._request = Request.load(request_path(self.folder))

    @_safe(None)
    def study_started(self) -> None:
        """The study runs (again): show it, and send what an earlier run could not."""
        self._due |= {key_of(record) for record in ledger.read(self.folder).records.values()}
        self._ask("RUNNING", ())
        self._ensure()

    @_safe(None)
    def trial(self, record: TrialRecord) -> None:
        """A trial stands in the ledger."""
        self._due.add(key_of(record))
        self._ensure()

    @_safe(None)
    def finished(self, status: Status = "FINISHED", files: Sequence[Path] = ()) -> None:
        """The study is over (`KILLED`: stopped, can go on); `files` are texts to keep beside it: exports, the report."""
        self._ask(status, tuple(str(path) for path in files))
        self._ensure()

    @property
    def behind(self) -> int:
        """Trials that MLflow has not acknowledged."""
        return self._behind()

    @_safe(None)
    def status(self) -> str | None:
        """One sentence when MLflow does not follow, else None."""
        problem = self._state().problem or self.problem
        waiting = self.behind
        if problem is None and not waiting:
            return None
        why = f" ({problem})" if problem else ""
        trials = f"{waiting} trial{'' if waiting == 1 else 's'}"
        later = f"python -m autotune.tracking {self.folder} --once"
        return f"MLflow at {redact(self.uri)} is {trials} behind{why}; nothing is lost: the next run sends them, or {later}"

    @_safe(False)
    def flush(self, timeout_s: float) -> bool:
        """Wait until MLflow shows everything, an attempt fails, or time is up; returns whether it does show everything."""
        deadline = time.monotonic() + timeout_s
        size = (self.folder / ledger.FILE).stat().st_size
        self._ask(self._request.status, self._request.files)
        self._ensure()
        failures: int | None = None
        while time.monotonic() < deadline:
            state = self._state()
            if state.request == self._request.number and state.ledger_bytes >= size:
                return True
            failures = state.failures if failures is None or state.failures < failures else failures
            if state.failures > failures or not self._alive():
                return False
            time.sleep(0.05)
        return False

    @_safe(None)
    def close(self) -> None:
        """End the sender. What is not sent yet stays in the ledger."""
        if self._process is not None:
            self._process.stop(grace_s=2.0)
            self._process = None

    def _ask(self, status: Status, files: tuple[str, ...]) -> None:
        self._request = Request(number=self._request.number + 1, status=status, files=files)
        self._request.save(request_path(self.folder))

    def _state(self) -> State:
        """What the sender acknowledged, for this server and this run of the study."""
        state = State.load(state_path(self.folder))
        try:
            ours = state.target == target_of(self.uri, self.experiment, self.folder)
        except OSError:  # there is no ledger, so nothing was acknowledged
            ours = False
        return state if ours else State(problem=state.problem)

    @_safe(0)
    def _behind(self) -> int:
        return len(self._due - self._state().sent.keys())

    def _alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def _ensure(self) -> None:
        """Start the sender unless it runs; one that died is given a pause first."""
        if self._alive() or (self._process is not None and time.monotonic() - self._started_at < _RESTART_S):
            return
        self._started_at = time.monotonic()
        self._process = process.start(
            [sys.executable, "-m", "autotune.tracking", str(self.folder)],
            env={**LIMITS, **os.environ, URI: self.uri, EXPERIMENT: self.experiment, DRIVER: str(os.getpid())},
            cwd=Path.cwd(),
            log=self.folder / FOLDER / "sender.log",
            tag=process.make_tag(self.store, self.study, "tracking"),
        )
