"""The process that talks to MLflow, so that neither its imports nor a server that hangs costs the study anything.

It follows the study's ledger and request file, and ends itself when its driver is gone, when it is asked to (TERM), or when
one pass makes no progress for `STUCK_S`; the driver starts it again. Run by hand it sends what is missing and ends:
`python -m autotune.tracking FOLDER --once`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from autotune import ledger, results
from autotune.secrets import redact
from autotune.tracking import database
from autotune.tracking.state import Request, State, request_path, state_path
from autotune.trial import digest_of

URI = "AUTOTUNE_TRACKING_URI"
EXPERIMENT = "AUTOTUNE_TRACKING_EXPERIMENT"
DRIVER = "AUTOTUNE_TRACKING_DRIVER"
"""The driver's process id: it may be gone before its sender has even imported itself."""
STUCK_S = 90.0
"""Longest silence of a pass: above the sum of MLflow's own time-outs for one call."""
POLL_S = 0.3
PAUSE_S = 1.0
"""Between two passes, so that trials that end together are sent together."""
LONGEST_WAIT_S = 60.0
LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""MLflow's own retries block for minutes (7 times 120 s); ours start a pass anew. What the user's environment says wins."""


@dataclass
class Watch:
    """Ends the process when its parent is gone or a pass is stuck."""

    parent: int
    last_sign: float = field(default_factory=time.monotonic)
    working: bool = False

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def sign(self) -> None:
        """Say that the pass goes on."""
        self.last_sign = time.monotonic()

    def _run(self) -> None:
        while True:
            time.sleep(0.2)
            if os.getppid() != self.parent:
                os._exit(0)
            if self.working and time.monotonic() - self.last_sign > STUCK_S:
                os._exit(75)


class Sender:
    """Follows one study's folder."""

    def __init__(self, folder: Path, uri: str, experiment: str, watch: Watch) -> None:
        self.folder, self.uri, self.experiment, self.watch = folder, uri, experiment, watch
        self.state = State.load(state_path(folder))
        self.state.attempts = self.state.failures = 0
        self.server: object | None = None

    def run(self, once: bool) -> int:
        """Follow until ended; with `once` one pass, whose success is the exit status."""
        self._save()
        wait = 0.0
        due = time.monotonic()
        seen: tuple[int, int] | None = None
        while True:
            now = self._fingerprint()
            if now is not None and time.monotonic() >= due and now != seen:
                done = self.attempt(now)
                if once:
                    return 0 if done else 1
                seen = now if done else None
                wait = PAUSE_S if done else min(LONGEST_WAIT_S, max(2.0, wait * 2))
                due = time.monotonic() + wait
            elif now is not None and seen is not None and now[1] != seen[1]:
                due = time.monotonic()
            time.sleep(POLL_S)

    def attempt(self, fingerprint: tuple[int, int]) -> bool:
        """One pass; a failure is kept as the state's problem."""
        self.watch.sign()
        self.watch.working = True
        self.state.attempts += 1
        try:
            self._pass()
            self.state.problem = None
            self.state.ledger_bytes, self.state.request = fingerprint
        except Exception as error:  # the one boundary between MLflow, its database drivers and networks, and the study
            self.server = None
            self.state.failures += 1
            self.state.problem = _sentence(error)
            print(self.state.problem, file=sys.stderr, flush=True)
        finally:
            self.watch.working = False
        self._save()
        return self.state.problem is None

    def _pass(self) -> None:
        from autotune.tracking import send

        found = results.read(self.folder)
        study_id, target = identity(self.folder), target_of(self.uri, self.experiment, self.folder)
        if self.state.target != target:
            self.state = State(target=target, attempts=self.state.attempts, failures=self.state.failures)
        if not isinstance(self.server, send.Server) or self.server.study_id != study_id:
            database.make(self.uri)
            self.server = send.Server(self.uri, self.experiment, artifacts_of(self.uri, self.folder.parent), study_id)
            self.state.experiment = self.server.experiment
        request = Request.load(request_path(self.folder))
        send.bring_up_to_date(self.server, found, request, self.state, self._save)

    def _save(self) -> None:
        self.watch.sign()
        try:
            self.state.save(state_path(self.folder))
        except OSError as error:
            print(f"Cannot keep the tracking state: {error}", file=sys.stderr, flush=True)

    def _fingerprint(self) -> tuple[int, int] | None:
        try:
            return (self.folder / ledger.FILE).stat().st_size, Request.load(request_path(self.folder)).number
        except OSError:
            return None


def identity(folder: Path) -> str:
    """What tells this run of a study from another of the same name: the digest of its ledger's first line."""
    with (folder / ledger.FILE).open() as stream:
        return digest_of(stream.readline())


def target_of(uri: str, experiment: str, folder: Path) -> str:
    """What an acknowledgement is worth something for: this server, this experiment, this run of the study."""
    return digest_of([uri, experiment, identity(folder)])


def artifacts_of(uri: str, store: Path) -> str | None:
    """Where files go beside a database of the store's own; None leaves it to the server."""
    local = uri.startswith("sqlite:")
    return (store.resolve() / "mlartifacts").as_uri() if local else None


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return redact(f"{type(error).__name__}: {text}")[:300]
