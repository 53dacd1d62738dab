"""What a trainer's log says it died of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.engines.base import Diagnosis
from autotune.logs import tail
from autotune.trial import FailureKind, Phase, TrialFailed


def death(
    log: Path,
    returncode: int | None,
    phase: Phase,
    diagnose: Callable[[str, int | None], Diagnosis | None],
    trained: bool = False,
) -> TrialFailed:
    """What a trainer that ended by itself, or hangs (`returncode` None), died of; `trained` says that it had made steps."""
    lines = tail(log, 200)
    found = diagnose("\n".join(lines), returncode)
    if found is None:
        how = "The trainer hangs." if returncode is None else f"The trainer ended with status {returncode}."
        # Nobody but the kernel kills a trainer that this session has not stopped.
        if returncode == -9:
            return TrialFailed(
                FailureKind.OUT_OF_MEMORY, phase, f"{how} Something, most likely the kernel, killed it.", *lines[-2:]
            )
        evidence = (how, *lines[-3:])
        return TrialFailed(FailureKind.CRASHED, phase, *evidence, advice=f"Read {log}.")
    # The same exception that refuses an argument before training is an ordinary crash once steps were made.
    late = found.kind is FailureKind.INVALID_CONFIG and trained
    kind = FailureKind.CRASHED if late else found.kind
    if kind is not FailureKind.CRASHED:
        return TrialFailed(kind, phase, *found.evidence, advice=found.advice)
    plain = _plain("\n".join(lines))
    placed = [line + _raised_at(plain, line) for line in found.evidence]
    advice = found.advice if found.advice == _OWN_CODE and not late else f"Read {log.name} in the trial's folder."
    return TrialFailed(kind, phase, *placed, advice=advice)


def _raised_at(lines: Sequence[str], exception: str) -> str:
    """Where an exception was raised, which its name alone often leaves open."""
    frames = _frames(lines, exception)
    return f" (raised in {frames[-1][1]}, line {frames[-1][2]}, in {frames[-1][3]})" if frames else ""


def _frames(lines: Sequence[str], exception: str) -> Sequence[re.Match[str]]:
    """The traceback of an exception, of the last that has one. Frames of others stand before it and after it."""
    found, frames = list[re.Match[str]](), list[re.Match[str]]()
    for line in map(str.strip, lines):
        if at := _FRAME.match(line):
            frames.append(at)
        elif _EXCEPTION.match(line):
            found = (frames or found) if line[:_QUOTED] == exception else found
            frames = []
    return found


def _plain(log: str) -> list[str]:
    """A log's lines without colours."""
    return _COLOURS.sub("", log).splitlines()


_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate|std::bad_alloc"
    r"|^MemoryError|less than desired GPU memory utilization|No available memory for the cache blocks"
    r"|Workers .* were killed due to the node running low on memory|ray\.exceptions\.OutOfMemoryError",
    re.MULTILINE,
)
_MACHINE = re.compile(
    r"address already in use|No space left on device|uncorrectable ECC|no CUDA-capable device|GPU is lost"
    r"|Failed to initialize NVML",
    re.IGNORECASE,
)
_OWN_CODE = "The study's own code raised it, and refused no parameters: mend that, then run the study with --fresh."
_QUOTED = 400
"""How many characters of a line are quoted."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r'^(?:\([^)]*\)\s*)?File "([^"]+)", line (\d+), in (\S+)')
_EXCEPTION = re.compile(r"^(?:\([^)]*\)\s*)?([A-Za-z_][\w.]*(?:Error|Exception|Exit)): (.*)$")


@dataclass(frozen=True)
class Own:
    """The study's own code: the script that a run is, and the file of what its trainer calls, by the end of its path."""

    script: str | None = None
    called: str | None = None

    def at_fault(self, frames: Sequence[str]) -> bool:
        """Whether an exception with these files in its traceback is this code's: raised by the script itself, as one that its
        trainer raises may be a refusal of parameters, or anywhere below what the trainer called."""
        below = self.called is not None and any(frame.endswith(self.called) for frame in frames)
        return below or (self.script is not None and frames[-1:] == [self.script])


def diagnose(log: str, refusals: Sequence[str], own: Own = Own()) -> Diagnosis | None:
    """What both frameworks die of in the same words; `refusals` are exception names that mean a refused argument, unless the
    study's own code raises them."""
    lines = _plain(log)
    if faults := [line.strip() for line in lines if _MACHINE.search(line)]:
        return Diagnosis(
            kind=FailureKind.MACHINE_FAULT,
            evidence=(faults[-1][:_QUOTED],),
            advice="Look at the machine; the configuration is not at fault.",
        )
    memory = [line.strip() for line in lines if _OUT_OF_MEMORY.search(line)]
    if memory:
        return Diagnosis(kind=FailureKind.OUT_OF_MEMORY, evidence=(memory[-1][:_QUOTED],), advice="")
    raised = [match for line in lines if (match := _EXCEPTION.match(line.strip()))]
    if not raised:
        return None
    theirs = own.at_fault([frame[1] for frame in _frames(lines, raised[-1][0].strip()[:_QUOTED])])
    refused = raised[-1][1].rpartition(".")[2] in refusals and not theirs
    advice = "Change or forbid this combination of parameters." if refused else _OWN_CODE if theirs else "Read the trial's log."
    kind = FailureKind.INVALID_CONFIG if refused else FailureKind.CRASHED
    # The last exception is what ended the run; among several processes the first is more often the cause.
    causes = [match for match in raised if not match[1].startswith("ray.exceptions.")] or raised
    evidence = dict.fromkeys(match[0].strip()[:_QUOTED] for match in (raised[-1], causes[0]))
    return Diagnosis(kind=kind, evidence=tuple(evidence), advice=advice)
