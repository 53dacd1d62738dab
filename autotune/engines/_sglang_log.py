"""What an SGLang server says: its log the phases of the start-up and why it died, its endpoints what it runs with.

The exit status says little: the scheduler is a child that ends the whole tree with SIGKILL for a bad value and for lack of
memory alike, so the child's last exception is what decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from autotune.engines import _logprobs
from autotune.engines._milestones import Milestones
from autotune.engines._server import Ask, Dialect, decisive
from autotune.engines._sglang_args import by_flag
from autotune.engines.base import Diagnosis, Flag
from autotune.secrets import is_secret_name
from autotune.trial import FailureKind, Value

MILESTONES: Milestones = (
    ("imports", re.compile(r"Init (?:torch distributed|parallel) begin")),
    ("distributed", re.compile(r"Load weight begin")),
    ("weights", re.compile(r"Load weight end")),
    ("kv_cache", re.compile(r"Memory pool end|KV Cache is allocated")),
    ("capture", re.compile(r"Capture .*(?:CUDA|cuda) graph end")),
)
READY = re.compile(r"The server is fired up and ready to roll")
FATAL = re.compile(
    r"Scheduler hit an exception|Received sigquit from a child process|(?:sglang serve|launch_server\.py|launch\.py): error:"
)

_OWN_END = re.compile(
    r"Scheduler hit an exception|Received sigquit from a child process|SIGQUIT received"
    r"|Subprocess \S+ \(pid=\d+\) crashed with exit code (?!-9\b)"
)
"""What it says before it kills its own processes because one of them has died; -9 is a child that somebody else killed."""
_CHILD_KILLED = re.compile(r"Subprocess \S+ \(pid=\d+\) crashed with exit code -9\b")
_REFUSED = re.compile(r"(?:sglang serve|launch_server\.py|launch\.py): error:\s*(?P<said>.*)")
_EXCEPTION = re.compile(r"^(?:\[[^\]]*\]\s*)?(?:\w+\.)*(?P<type>[A-Z]\w*(?:Error|Exception))(?::\s|$)")
_ECHO = re.compile(r"EOFError|CancelledError|scheduler (?:is dead|died)|Initialization failed|ConnectionResetError|BrokenPipeError")
"""What the parent says because the child is gone; never the reason itself."""
_CONFIGURATION = frozenset(
    f"{name}Error"
    for name in (
        "Assertion",
        "Attribute",
        "Import",
        "Index",
        "Key",
        "ModuleNotFound",
        "NotImplemented",
        "Type",
        "Value",
        "Validation",
    )
)
"""What a combination of values that SGLang cannot run dies of."""
_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|Not enough memory\. Please try to increase|(?:Prefill|Decode) out of memory"
    r"|can't allocate memory|Cannot allocate memory|^MemoryError"
)
_MACHINE = re.compile(
    r"[Aa]ddress already in use|No space left on device|uncorrectable ECC|fallen off the bus|no CUDA-capable device"
    r"|CUDA driver version is insufficient|system not yet initialized|Too many open files"
)


def diagnose(log: str, returncode: int | None) -> Diagnosis | None:
    """Classify a failure. None when the log holds nothing decisive."""
    lines = log.splitlines()
    if found := decisive(lines, _MACHINE):
        return Diagnosis(
            kind=FailureKind.MACHINE_FAULT, evidence=_clean(found), advice="Look at the machine; the configuration is not at fault."
        )
    if found := decisive(lines, _MEMORY):
        return Diagnosis(kind=FailureKind.OUT_OF_MEMORY, evidence=_clean(found), advice=_memory_advice(found))
    if found := decisive(lines, _REFUSED):
        said = tuple(match["said"] for line in found if (match := _REFUSED.search(line)))
        return Diagnosis(kind=FailureKind.INVALID_CONFIG, evidence=said, advice="SGLang's own parser refuses these flags.")
    return _exception(lines)


def _exception(lines: Sequence[str]) -> Diagnosis | None:
    """The last exceptions after a traceback began, without the parent's echoes."""
    start = next((index for index, line in enumerate(lines) if "Traceback (most recent call last)" in line), None)
    found = [line for line in lines[start:] if _EXCEPTION.match(line) and not _ECHO.search(line)] if start is not None else []
    if not found:
        return _ended_itself(lines)
    match = _EXCEPTION.match(found[-1])
    assert match is not None, "found holds only matching lines"
    evidence = _clean(tuple(dict.fromkeys(found))[-2:])
    served = any(READY.search(line) for line in lines)
    if not served and match["type"] in _CONFIGURATION:
        return Diagnosis(
            kind=FailureKind.INVALID_CONFIG, evidence=evidence, advice="SGLang cannot run this combination of values here."
        )
    when = "while it served" if served else "before it served"
    return Diagnosis(kind=FailureKind.CRASHED, evidence=evidence, advice=f"SGLang died {when}; the trial's log has the traceback.")


def _ended_itself(lines: Sequence[str]) -> Diagnosis | None:
    """One of its processes died without a word. The status -9 is then SGLang's own doing, unless that process was killed itself."""
    found = decisive(lines, _OWN_END)
    if not found or any(_CHILD_KILLED.search(line) for line in lines):
        return None
    said = "SGLang ended itself because one of its processes had died; the trial's log has what it wrote last."
    return Diagnosis(kind=FailureKind.CRASHED, evidence=_clean(found), advice=said)


def _memory_advice(found: Sequence[str]) -> str:
    text = " ".join(found)
    if "Not enough memory" in text:
        return "No room is left for a KV pool: raise mem_fraction_static, or make the weights smaller (tp_size, quantization)."
    if "Prefill out of memory" in text or "Decode out of memory" in text:
        return "The KV pool ran out while serving: lower max_running_requests, or raise mem_fraction_static."
    return "Lower mem_fraction_static, chunked_prefill_size or cuda_graph_max_bs_decode."


def _clean(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines without SGLang's own time and rank prefix."""
    return tuple(re.sub(r"^\[\d{4}-\d\d-\d\d [\d:]+[^\]]*\]\s*", "", line)[:500] for line in lines)


def dialect(flags: Mapping[str, Flag], warm: bool | None) -> Dialect:
    """How a session talks to a server with these flags. `warm`: whether its compile cache held anything, None where it has none."""
    return Dialect(
        milestones=MILESTONES,
        fatal=FATAL,
        confirm=partial(confirm, flags, warm),
        diagnose=diagnose,
        reset="/flush_cache?timeout=5",
        answer=_logprobs.of_sglang,
        # It looks every five seconds whether a TERM has come, and waits for its schedulers then: 7 to 9 s on an H200.
        lingers=True,
    )


def confirm(flags: Mapping[str, Flag], warm: bool | None, ask: Ask, _log: str) -> dict[str, Value]:
    """What the running server says about itself; what it does not tell is left out."""
    facts: dict[str, Value] = {} if warm is None else {"compile_cache": "warm" if warm else "cold"}
    info = ask("/server_info")
    if not isinstance(info, Mapping):
        return facts
    state: Mapping[str, Any] = (info.get("internal_states") or [{}])[0]
    told = {
        "kv_tokens": info.get("max_total_num_tokens"),
        "version": info.get("version"),
        "engine_seconds": info.get("startup_time"),
        "memory_gib": state.get("memory_usage"),
    }
    effective = by_flag(info)
    if not effective.get("max_running_requests"):
        # The limit that SGLang derives from the size of its KV pool, also when it was asked for 0.
        effective["max_running_requests"] = state.get("effective_max_running_requests_per_dp")
    known = {name: value for name, value in effective.items() if name in flags and not is_secret_name(name)}
    return {**facts, **{name: value for name, value in told.items() if value is not None}, "effective": known}
