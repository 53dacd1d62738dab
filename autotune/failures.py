"""Why a trial failed, from what is left of it: the engine's log, how its process ended, what the kernel did, a traceback.

A trial that ends badly names the kind that showed (it did not get ready, it died); what stands behind that is found here.
"""

from __future__ import annotations

import contextlib
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path

from autotune import process
from autotune.advice import advice
from autotune.engines.base import Engine
from autotune.secrets import redact
from autotune.trial import Failed, FailureKind, Phase

_EVIDENCE_LINES = 12
_LOG_BYTES = 512 * 1024
_GENERIC = (FailureKind.CRASHED, FailureKind.UNHEALTHY, FailureKind.START_TIMEOUT, FailureKind.INCOMPLETE)
_SPECIFIC = (FailureKind.OUT_OF_MEMORY, FailureKind.INVALID_CONFIG)


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of an attempt whose engine has ended."""

    folder: Path
    """The trial's, with its logs."""
    returncode: int | None
    """None for an engine that had not ended by itself."""
    attempt: int
    oom_kills: int
    """What `oom_kills` told before the engine was launched."""


def explained(failed: Failed, engine: Engine, remains: Remains) -> Failed:
    """The failure with the engine's own decisive lines and advice. Raises nothing: one that cannot be explained stays as it is."""
    try:
        failed = _diagnosed(failed, engine, remains)
    except Exception as error:
        keep_traceback(remains.folder, error)
    said = failed.advice or advice(failed.kind, failed.phase, training=engine.serves == "training")
    evidence = tuple(redact(line)[:2000] for line in failed.evidence)[: 2 * _EVIDENCE_LINES]
    return failed.model_copy(update={"advice": said, "evidence": evidence})


def _diagnosed(failed: Failed, engine: Engine, remains: Remains) -> Failed:
    """Asks the engine what its log says. A vague kind gives way to a specific one; a specific one is kept."""
    if failed.kind not in _GENERIC:
        return failed
    log = _log_text(remains.folder)
    found = engine.diagnose(log, remains.returncode)
    if found is not None:
        # What was ready has refused no flags, whatever the name of the exception that ended it.
        late = found.kind is FailureKind.INVALID_CONFIG and failed.phase is not Phase.START
        better = not late and (found.kind in _SPECIFIC or failed.kind is FailureKind.CRASHED)
        evidence = tuple(dict.fromkeys((*found.evidence, *failed.evidence)))
        update = {"evidence": evidence, "kind": found.kind if better else failed.kind}
        return failed.model_copy(update=update | ({"advice": found.advice} if better else {}))
    if failed.kind is FailureKind.CRASHED and oom_kills() > remains.oom_kills:
        line = "The kernel ended a process for lack of main memory while the trial ran."
        return failed.model_copy(update={"kind": FailureKind.OUT_OF_MEMORY, "evidence": (line, *failed.evidence)})
    if failed.kind is FailureKind.CRASHED and remains.returncode == -signal.SIGKILL and remains.attempt == 1:
        line = "The engine was killed from outside: signal 9, and its log gives no reason. Happening twice, it counts as a crash."
        return failed.model_copy(update={"kind": FailureKind.MACHINE_FAULT, "evidence": (line, *failed.evidence), "advice": ""})
    return failed if failed.evidence else failed.model_copy(update={"evidence": tuple(log.splitlines()[-_EVIDENCE_LINES:])})


def _log_text(folder: Path) -> str:
    """The ends of the trial's logs."""
    return "\n".join(line for log in sorted(folder.glob("*.log")) for line in process.tail(log, 5000, _LOG_BYTES))


def defect(error: Exception, phase: Phase, folder: Path) -> Failed:
    """An error nobody expected: a machine's, or ours. Never a score, and told with its traceback."""
    keep_traceback(folder, error)
    lines = [line for text in traceback.format_exception(error) for line in text.rstrip().splitlines()]
    evidence = (f"{type(error).__name__}: {error}", *lines[-4:], "The whole traceback is in traceback.txt of the trial's folder.")
    return Failed(kind=FailureKind.MACHINE_FAULT, phase=phase, evidence=tuple(dict.fromkeys(evidence)))


def keep_traceback(folder: Path, error: BaseException) -> None:
    """Writes `traceback.txt` into the trial's folder; that it cannot be written hides no failure."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traceback.txt").write_text(redact("".join(traceback.format_exception(error))))


def oom_kills() -> int:
    """How many processes the kernel has ended for lack of memory since boot; 0 where it does not count them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
