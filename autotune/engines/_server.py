"""A serving engine as a session: starts it, waits until it serves, watches it, ends it. Shared by vLLM and SGLang.

What differs between engines stands in a Dialect: which log line ends which phase of the start-up, which line means that it
will never serve, how to ask it what it runs with, and how to empty its caches.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from autotune import process, standby
from autotune.answers import Answer
from autotune.engines import _logprobs
from autotune.engines._milestones import Clock, Milestones
from autotune.engines.base import Context, Diagnosis, EngineOptions, Launch, Session
from autotune.gpu import Sampler
from autotune.logs import LogReader, tail
from autotune.trial import FailureKind, Phase, TrialFailed, Value

LOG = "engine.log"
_GIB = 1 << 30
_POLL_S = 0.1
_LAST_WORDS_S = 3.0
"""How long an engine that has said a fatal line may go on writing its reasons before it is stopped."""
_OWNER_CHECK_S = 5.0

Ask = Callable[[str], Value]
"""GET a path of the running server: parsed JSON, else the text; None when it does not answer with 200."""


@dataclass(frozen=True)
class Dialect:
    """What an engine knows about its own server."""

    milestones: Milestones
    fatal: re.Pattern[str]
    """A log line after which the server cannot come up, or cannot go on."""
    confirm: Callable[[Ask, str], Mapping[str, Value]]
    """Start-up facts from the running server and its log: `effective`, `version`, `kv_tokens`, `compile_cache`, ...; what it
    does not tell is left out."""
    diagnose: Callable[[str, int | None], Diagnosis | None]
    reset: str
    """Path that empties the prefix cache when POSTed to."""
    health: str = "/health"
    answer: _logprobs.Ask | None = None
    """None for a server that gives no log-probabilities."""
    lingers: bool = False
    """Whether TERM takes it seconds for which a GPU waits, and KILL leaves nothing behind either; it is killed at once then."""


class ServingSession(Session):
    """An HTTP server in a process tree of its own, its output in `engine.log` of the trial's folder."""

    def __init__(self, launch: Launch, context: Context, options: EngineOptions, dialect: Dialect, model: str) -> None:
        assert launch.endpoint is not None, "a serving launch has an endpoint"
        self.endpoint, self.model = launch.endpoint, model
        self._port = urlsplit(launch.endpoint).port or 0
        self._context, self._options, self._dialect = context, options, dialect
        self.log = context.folder / LOG
        self._lines = LogReader(self.log)
        self._phase = Phase.START
        self._clock = Clock(dialect.milestones)
        self._owner_checked = 0.0
        self._process, self._standby = standby.start(
            launch.argv, env=launch.env, cwd=context.scratch, log=self.log, tag=context.tag, cpus=context.cpus
        )
        self._began = time.monotonic()
        self._memory = process.PeakMemory(self._process.members)
        self._memory.__enter__()
        self._gpu = Sampler(context.gpus, self._process.members) if context.gpus else None
        if self._gpu is not None:
            self._gpu.__enter__()

    def wait_ready(self) -> Mapping[str, Value]:
        deadline = self._began + self._options.start_timeout_s
        while not self._serves():
            self._read()
            if self._process.returncode() is not None:
                raise self._death()
            if time.monotonic() > deadline:
                raise self._too_late()
            time.sleep(_POLL_S)
        self._read()
        self._clock.end("serve")
        self._process.note_segments()
        self._check_owner(time.monotonic())
        facts = self._dialect.confirm(self._ask, self.log.read_text(errors="replace"))
        self._phase = Phase.MEASURE
        ahead = self._standby.facts() if self._standby is not None else {}
        return {**facts, **ahead, "seconds": dict(self._clock.seconds)}

    def check_alive(self) -> None:
        self._read()
        if self._process.returncode() is not None:
            raise self._death()
        now = time.monotonic()
        if now - self._owner_checked > _OWNER_CHECK_S:
            self._check_owner(now)

    def reset_caches(self) -> bool:
        """Empty the engine's prefix cache, so that a level does not feed on the one before; False when the engine will not."""
        self.check_alive()
        return self._request("POST", self._dialect.reset) is not None

    def answers(self, prompts: Sequence[str]) -> tuple[Answer, ...]:
        if self._dialect.answer is None or self.endpoint is None:
            return super().answers(prompts)
        try:
            return _logprobs.asked(self._dialect.answer, self.endpoint, self.model, prompts)
        except TrialFailed:
            self.check_alive()
            raise

    def resources(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        if self._memory.peak_bytes is not None:
            found["peak_memory_gib"] = self._memory.peak_bytes / _GIB
        return {**found, **(self._gpu.totals() if self._gpu is not None else {})}

    def resources_between(self, begin: float, end: float) -> Mapping[str, float]:
        return self._gpu.between(begin, end) if self._gpu is not None else {}

    def stop(self) -> Mapping[str, Value]:
        self._memory.close()
        if self._gpu is not None:
            self._gpu.close()
        report = self._process.stop(0.0 if self._dialect.lingers else self._options.stop_timeout_s)
        free = process.wait_gone(self._port, 5.0)
        facts = report.facts
        if report.survivors or not free:
            facts |= {"survivors": list(report.survivors), "port_free": free}
        if self._gpu is not None:
            facts["gpu"] = self._gpu.evidence()
        return facts

    def _serves(self) -> bool:
        return self._request("GET", self._dialect.health, timeout_s=2.0) is not None

    def _read(self) -> None:
        """Follow the log; a fatal line ends the wait at once instead of at the timeout."""
        for line in self._lines.lines():
            if self._phase is Phase.START and self._clock.read(line):
                self._process.note_segments()
            if self._dialect.fatal.search(line):
                self._let_finish()
                raise self._death()

    def _let_finish(self) -> None:
        deadline = time.monotonic() + _LAST_WORDS_S
        while self._process.returncode() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _check_owner(self, now: float) -> None:
        """The port must be answered by this trial's own processes, not by a stranger that took it first."""
        self._owner_checked = now
        if not process.answers_for(self._port, self._context.tag):
            owner = process.port_listener(self._port)
            if owner is None:
                # Nobody holds the port: the server has just died, and its status follows in a moment.
                self._let_finish()
                if self._process.returncode() is not None:
                    raise self._death()
            who = "a process that cannot be looked at" if owner is None else f"process {owner}"
            said = f"Port {self._port} is answered by {who}, which is not of this trial."
            raise TrialFailed(FailureKind.MACHINE_FAULT, self._phase, said, advice="The trial is run again, with another port.")

    def _death(self) -> TrialFailed:
        returncode = self._process.returncode()
        found = self._dialect.diagnose("\n".join(tail(self.log, 5000, 4 << 20)), returncode)
        if found is not None:
            return TrialFailed(found.kind, self._phase, *found.evidence, advice=found.advice)
        ended = "has said that it cannot go on" if returncode is None else f"ended with status {returncode}"
        said = (f"The engine {ended}.", *tail(self.log, 5))
        return TrialFailed(FailureKind.CRASHED, self._phase, *said, advice=f"Read {self.log}.")

    def _too_late(self) -> TrialFailed:
        waited = f"The engine did not serve within {self._options.start_timeout_s:g} s."
        advice = "Raise engine.start_timeout_s if loading or compiling this model takes that long."
        return TrialFailed(FailureKind.START_TIMEOUT, Phase.START, waited, *tail(self.log, 3), advice=advice)

    def _ask(self, path: str) -> Value:
        text = self._request("GET", path, timeout_s=10.0)
        if text is None:
            return None
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text

    def _request(self, method: str, path: str, timeout_s: float = 30.0) -> str | None:
        """The body of a 200 answer; None for anything else. Never through a proxy: the server is on this machine."""
        request = urllib.request.Request(f"{self.endpoint}{path}", method=method, data=b"" if method == "POST" else None)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return answer.read().decode(errors="replace") if answer.status == 200 else None
        except (OSError, urllib.error.URLError, ValueError):
            return None


def decisive(lines: Iterable[str], pattern: re.Pattern[str], limit: int = 3) -> tuple[str, ...]:
    """The last few distinct lines that a pattern finds, without the engine's own line prefix."""
    found = list(dict.fromkeys(_bare(line) for line in lines if pattern.search(line)))
    return tuple(line[:500] for line in found[-limit:])


def _bare(line: str) -> str:
    """A log line without process name, level, time and place: `(EngineCore pid=7) ERROR 11-21 12:20:39 [core.py:9] `."""
    return re.sub(r"^(?:\([\w .:-]*pid=\d+\)\s*)?(?:(?:ERROR|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\]\s*)?", "", line).strip()
