"""What a user can do about a failed trial, for each failure kind, in the practitioners' troubleshooting order."""

from __future__ import annotations

from autotune.trial import Failed, FailureKind, Phase

_SERVING_MEMORY_START = (
    "Raise gpu_memory_utilization (mem_fraction_static) when the engine had no room for its KV cache, and lower it when "
    "allocation failed outside the cache; then lower max_model_len, max_num_batched_tokens and max_num_seqs, or use a "
    "smaller KV or weight type, or more GPUs (tensor_parallel_size)."
)
_SERVING_MEMORY_LOAD = (
    "It started but ran out of memory under load: lower gpu_memory_utilization (mem_fraction_static) first, then the "
    "lengths (max_model_len), then max_num_batched_tokens (chunked_prefill_size) and max_num_seqs."
)
_TRAINING_MEMORY = (
    "Lower the micro-batch per GPU first, then the rollout engine's gpu_memory_utilization, then the prompt and response "
    "lengths; switch gradient checkpointing on; a restart removes fragmentation."
)
_GENERAL: dict[FailureKind, str] = {
    FailureKind.REJECTED: "Nothing was launched: change the parameters that the reason names, or widen the limit it states.",
    FailureKind.INVALID_CONFIG: (
        "The engine refuses this combination on any machine: add a forbid rule for it to the search space, or narrow the range."
    ),
    FailureKind.START_TIMEOUT: (
        "It was still starting when its time ran out: raise the engine's start_timeout_s (a first start compiles and captures "
        "graphs), or look in the trial's log for what it waited for."
    ),
    FailureKind.CRASHED: "The engine died by itself: the last lines of its log say where; the whole log is in the trial's folder.",
    FailureKind.UNHEALTHY: "The engine was alive but did not serve: look for a hang in the trial's log.",
    FailureKind.INCOMPLETE: (
        "Too little of the work finished to be scored: lower the load or lengthen the window; when the client was the "
        "bottleneck, give it more cores or processes."
    ),
    FailureKind.ENDED_EARLY: (
        "Nothing: the search avoids its like. A new study measures it in full when its first_trials name it, or with "
        "search.early_exit: false."
    ),
    FailureKind.MACHINE_FAULT: (
        "This was not the configuration's fault: it is tried once more; if it comes back, look at the machine (memory, disk, "
        "driver, other users)."
    ),
    FailureKind.INTERRUPTED: "Run the study again to continue; this trial is run anew.",
}


def advice(kind: FailureKind, phase: Phase, *, training: bool = False) -> str:
    """The advice for a failure in a phase of a serving or (with `training`) a training trial."""
    if kind is not FailureKind.OUT_OF_MEMORY:
        return _GENERAL[kind]
    if training:
        return _TRAINING_MEMORY
    return _SERVING_MEMORY_LOAD if phase in (Phase.WARM_UP, Phase.MEASURE) else _SERVING_MEMORY_START


def failed(kind: FailureKind, phase: Phase, *evidence: str) -> Failed:
    """The outcome of a trial that failed outside its engine, with the general advice."""
    return Failed(kind=kind, phase=phase, evidence=evidence, advice=advice(kind, phase))
