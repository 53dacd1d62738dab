"""What vLLM's log and its running server say: start-up phases, facts, and why it failed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.engines._milestones import Milestones
from autotune.engines._server import Ask, Dialect, decisive
from autotune.engines.base import Diagnosis
from autotune.trial import FailureKind, Value

MILESTONES: Milestones = (
    ("imports", re.compile(r"non-default args:|vLLM API server version|█▄█▀")),
    ("config", re.compile(r"Resolved architecture|Using max model len")),
    ("engine", re.compile(r"Initializing a V1 LLM engine")),
    ("workers", re.compile(r"Starting to load model")),
    ("load", re.compile(r"Model loading took|Warming up model for the compilation|Loading weights took")),
    ("compile", re.compile(r"torch\.compile took|torch\.compile takes|Warming up done|Initial profiling/warmup run took")),
    ("kv_cache", re.compile(r"KV cache size: ")),
    ("graphs", re.compile(r"Graph capturing finished")),
    ("warm_up", re.compile(r"init engine \(")),
)
"""Of vLLM 0.26 to 0.32, on GPU and CPU; a phase whose line a build does not write falls to the next."""

FATAL = re.compile(
    r"EngineCore failed to start|Engine core initialization failed|EngineCore encountered a fatal error"
    r"|WorkerProc hit an exception|EngineDeadError"
)
_SERVED = "Application startup complete"
_WARM = re.compile(
    r"Directly load (?:AOT compilation|the compiled graph)|Loaded AOT compiled function|reusing AOT compil", re.IGNORECASE
)
_COLD = re.compile(r"saved AOT compiled function|Cache the graph of|Compiling a graph|Dynamo bytecode transform time")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class _Cause:
    kind: FailureKind
    pattern: re.Pattern[str]
    advice: str


def _cause(kind: FailureKind, advice: str, *patterns: str) -> _Cause:
    return _Cause(kind, re.compile("|".join(patterns)), advice)


_CAUSES: Sequence[_Cause] = (
    _cause(
        FailureKind.MACHINE_FAULT,
        "The port was taken between choosing and binding it; the trial is run again with another.",
        r"[Aa]ddress already in use",
    ),
    _cause(
        FailureKind.MACHINE_FAULT,
        "Free disk space for the cache and temporary folders.",
        r"No space left on device",
    ),
    _cause(
        FailureKind.MACHINE_FAULT,
        "The GPU or its driver is at fault, not the configuration: see nvidia-smi and the kernel log.",
        r"no CUDA-capable device",
        r"CUDA-capable device\(s\) is/are busy",
        r"uncorrectable ECC",
        r"Failed to initialize NVML",
        r"GPU is lost",
    ),
    _cause(
        FailureKind.OUT_OF_MEMORY,
        "Less memory was free at the start than gpu_memory_utilization asks for: lower it, or find out who else holds memory.",
        r"Free memory on device .* is less than desired GPU memory utilization",
        r"less than desired CPU memory utilization",
    ),
    _cause(
        FailureKind.OUT_OF_MEMORY,
        "Nothing is left for the KV cache: raise gpu_memory_utilization or kv_cache_memory_bytes, lower max_num_batched_tokens, "
        "or spread the model over more GPUs.",
        r"No available memory for the cache blocks",
    ),
    _cause(
        FailureKind.OUT_OF_MEMORY,
        "The KV cache cannot hold one request of full length: lower max_model_len, or give the cache more memory.",
        r"KV cache is needed, which is larger than the available KV cache memory",
        r"is larger than the maximum number of tokens that can be stored in (?:the )?KV cache",
    ),
    _cause(
        FailureKind.OUT_OF_MEMORY,
        "Lower gpu_memory_utilization, max_num_batched_tokens, max_num_seqs or the CUDA-graph sizes.",
        r"OutOfMemoryError",
        r"CUDA out of memory",
        r"CUBLAS_STATUS_ALLOC_FAILED",
        r"DefaultCPUAllocator: can't allocate",
        r"std::bad_alloc",
        r"^\S*MemoryError\b",
        r"[Cc]annot allocate memory",
    ),
    _cause(
        FailureKind.INVALID_CONFIG,
        "Name a model folder that holds weights, or a hub name that can be reached; synthetic: models need none.",
        r"Cannot find any model weights",
        r"LocalEntryNotFoundError",
        r"is not a local folder and is not a valid model identifier",
        r"couldn't connect to 'https://huggingface\.co'",
        r"Invalid repository ID or local directory",
        r"Repo id must",
    ),
    _cause(FailureKind.INVALID_CONFIG, "vLLM's own argument parser refuses this flag or value.", r"^(?:\S+\.py|vllm.*?): error: "),
)
"""First match wins, so causes that hide behind another's message stand before it."""

_EXCEPTION = re.compile(r"(?:^|\s)(?:[a-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt))\b: ?(.*)$")
_REFUSALS = {"ValueError", "ValidationError", "NotImplementedError", "AssertionError", "TypeError", "ImportError", "KeyError"}
"""Exceptions that vLLM raises before it serves when a configuration cannot work here."""
_EMPTY = re.compile(r"Engine core initialization failed|EngineDeadError|cancelled|Executor failed|WorkerProc initialization failed")
"""Messages of the processes around the one that failed, which only pass the failure on."""


def diagnose(log: str, returncode: int | None) -> Diagnosis | None:
    """Why vLLM failed, from its log; None when nothing decisive stands in it."""
    lines = log.splitlines()
    for cause in _CAUSES:
        found = decisive(lines, cause.pattern, limit=2)
        if found:
            return Diagnosis(kind=cause.kind, evidence=found, advice=cause.advice)
    return _exception(lines)


def _exception(lines: Sequence[str]) -> Diagnosis | None:
    """The first exception that is not merely passed on; before serving it means that the configuration cannot work."""
    served = False
    for index, line in enumerate(lines):
        served = served or _SERVED in line
        match = _EXCEPTION.search(line)
        if match is None or _EMPTY.search(line):
            continue
        evidence = decisive([line, *_continued(lines[index + 1 : index + 6])], re.compile(r"\S"))
        if match[1] in _REFUSALS and not served:
            advice = "vLLM refuses this combination here: change it, or forbid it in the search space."
            return Diagnosis(kind=FailureKind.INVALID_CONFIG, evidence=evidence, advice=advice)
        return Diagnosis(kind=FailureKind.CRASHED, evidence=evidence, advice="Read engine.log in the trial's folder.")
    return None


def _continued(lines: Sequence[str]) -> list[str]:
    """pydantic puts its message on the lines after the exception's name."""
    return [line for line in lines if "Value error, " in line or "Input should be" in line]


def confirm(ask: Ask, log: str) -> Mapping[str, Value]:
    """Start-up facts: what the server says of itself, then what its log says."""
    told = ask("/server_info?config_format=json")
    config = told.get("vllm_config") if isinstance(told, dict) else None
    version = ask("/version")
    cache = _cache_info(ask("/metrics"))
    tokens = cache.get("kv_cache_size_tokens") or _match(_KV_TOKENS, log)
    facts = {
        "effective": flattened(config) if isinstance(config, dict) else None,
        "version": version.get("version") if isinstance(version, dict) else None,
        "kv_tokens": int(str(tokens).replace(",", "")) if tokens else None,
        "kv_blocks": int(cache["num_gpu_blocks"]) if cache.get("num_gpu_blocks", "").isdigit() else None,
        "compile_cache": "warm" if _WARM.search(log) else "cold" if _COLD.search(log) else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def flattened(config: Mapping[str, Value]) -> dict[str, Value]:
    """A server's configuration by parameter name: the scalars of its parts, the first part that has a name wins."""
    found: dict[str, Value] = {}
    for part in ("cache", "scheduler", "parallel", "model", "load", "compilation", "attention", "offload"):
        for name, value in (config.get(f"{part}_config") or {}).items():
            if value is None or isinstance(value, bool | int | float | str):
                found.setdefault(name, value)
    if "cache_dtype" in found:
        found["kv_cache_dtype"] = found.pop("cache_dtype")
    return found


def _cache_info(metrics: Value) -> dict[str, str]:
    """Labels of vLLM's cache_config_info series."""
    lines = metrics.splitlines() if isinstance(metrics, str) else ()
    line = next((line for line in lines if line.startswith("vllm:cache_config_info{")), "")
    return {name: value for name, value in _LABEL.findall(line) if value != "None"}


def _match(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


DIALECT = Dialect(milestones=MILESTONES, fatal=FATAL, confirm=confirm, diagnose=diagnose, reset="/reset_prefix_cache")
