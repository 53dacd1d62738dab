"""vLLM's log lines, as real launches wrote them, become kinds of failure, phases and facts."""

from __future__ import annotations

import pytest

from autotune.engines import _vllm_log
from autotune.trial import FailureKind

CORE = "(EngineCore pid=8914) ERROR 11-21 12:20:39 [core.py:1213] "
API = "(APIServer pid=7811) "
LOGS = {
    "unknown flag": (
        ["usage: vllm serve [model_tag] [options]", "vllm serve: error: unrecognized arguments: --swap-space 4"],
        FailureKind.INVALID_CONFIG,
        "unrecognized arguments: --swap-space 4",
    ),
    "cross-check": (
        [
            API + "Traceback (most recent call last):",
            API + "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig",
            API
            + "  Value error, max_num_batched_tokens (256) must be greater than or equal to max_num_seqs (512). [type=value_error]",
        ],
        FailureKind.INVALID_CONFIG,
        "must be greater than or equal to max_num_seqs",
    ),
    "no block size": (
        [
            CORE + "EngineCore failed to start.",
            CORE + "ValueError: No common block size for 7 (CPU_ATTN: [MultipleOf(32)])",
            API + "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
        FailureKind.INVALID_CONFIG,
        "No common block size for 7",
    ),
    "CUDA out of memory": (
        [
            CORE
            + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 139.80 GiB",
            API + "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ],
        FailureKind.OUT_OF_MEMORY,
        "Tried to allocate 1.96 GiB",
    ),
    "no room for blocks": (
        [CORE + "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."],
        FailureKind.OUT_OF_MEMORY,
        "No available memory for the cache blocks",
    ),
    "one request does not fit": (
        [
            CORE + "ValueError: To serve at least one request with the models's max seq len (40960), (4.38 GiB KV cache is needed, "
            "which is larger than the available KV cache memory (1.0 GiB)."
        ],
        FailureKind.OUT_OF_MEMORY,
        "4.38 GiB KV cache is needed",
    ),
    "memory is taken": (
        [
            CORE
            + "ValueError: Free memory on device cuda:0 (20.11/139.8 GiB) on startup is less than desired GPU memory utilization "
            "(0.92, 128.62 GiB)."
        ],
        FailureKind.OUT_OF_MEMORY,
        "Free memory on device",
    ),
    "main memory is taken": (
        [
            "(Worker pid=1) ValueError: Available memory on node 0 (3.1/15.96 GiB) on startup is less than desired CPU memory "
            "utilization "
            "(0.92, 14.68 GiB)."
        ],
        FailureKind.OUT_OF_MEMORY,
        "less than desired CPU memory utilization",
    ),
    "port taken": (
        [API + "OSError: [Errno 98] Address already in use"],
        FailureKind.MACHINE_FAULT,
        "Address already in use",
    ),
    "disk full": (
        [CORE + "OSError: [Errno 28] No space left on device: '/cache/x'"],
        FailureKind.MACHINE_FAULT,
        "No space left on device",
    ),
    "no weights": (
        [CORE + "RuntimeError: Cannot find any model weights with `/models/empty`"],
        FailureKind.INVALID_CONFIG,
        "Cannot find any model weights",
    ),
    "died while serving": (
        [
            "INFO:     Application startup complete.",
            CORE + "EngineCore encountered a fatal error.",
            CORE + "ValueError: something that a request brought about",
            API + "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above).",
        ],
        FailureKind.CRASHED,
        "something that a request brought about",
    ),
}


@pytest.mark.parametrize("case", LOGS)
def test_a_log_names_its_cause(case):
    lines, kind, evidence = LOGS[case]
    found = _vllm_log.diagnose("\n".join(["(APIServer pid=1) INFO 11-21 12:18:02 [a.py:1] some line", *lines]), 1)
    assert found is not None
    assert found.kind is kind
    assert evidence in " ".join(found.evidence)
    assert not any(line.startswith("(") for line in found.evidence)
    assert found.advice


def test_a_log_that_says_nothing_is_not_explained():
    for returncode in (None, 1, -9):
        assert _vllm_log.diagnose("INFO 11-21 12:18:02 [a.py:1] all is well", returncode) is None


def test_what_a_server_tells_is_taken_and_the_rest_left_out():
    metrics = (
        'vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="4096",kv_cache_size_tokens="524288",x="None"} 1.0\n'
    )
    answers = {
        "/server_info?config_format=json": {
            "vllm_config": {
                "cache_config": {"block_size": 128, "cache_dtype": "auto"},
                "scheduler_config": {"max_num_seqs": 64, "runner": {"deep": 1}},
                "model_config": {"dtype": "torch.bfloat16", "max_num_seqs": 1},
                "parallel_config": None,
            }
        },
        "/version": {"version": "0.32.0"},
        "/metrics": metrics,
    }
    facts = _vllm_log.confirm(answers.get, "saved AOT compiled function to /x")
    assert facts["effective"]["max_num_seqs"] == 64
    assert facts["effective"]["kv_cache_dtype"] == "auto"
    assert (facts["version"], facts["kv_tokens"], facts["kv_blocks"]) == ("0.32.0", 524288, 4096)
    assert facts["compile_cache"] == "cold"
    assert _vllm_log.confirm(lambda path: None, "") == {}
    assert _vllm_log.confirm(lambda path: None, "GPU KV cache size: 920,144 tokens")["kv_tokens"] == 920144


def test_phases_come_in_the_order_of_the_log():
    names = [name for name, _ in _vllm_log.MILESTONES]
    lines = [
        "INFO 11-21 12:18:02 [api_utils.py:286] non-default args: {'host': '127.0.0.1'}",
        "INFO 11-21 12:18:23 [model.py:733] Resolved architecture: Qwen3ForCausalLM",
        "INFO 11-21 12:18:43 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/models/tiny'",
        "INFO 11-21 12:19:15 [cpu_model_runner.py:68] Starting to load model /models/tiny...",
        "INFO 11-21 12:19:17 [cpu_model_runner.py:87] Warming up model for the compilation...",
        "INFO 11-21 12:20:35 [cpu_model_runner.py:91] Warming up done.",
        "INFO 11-21 12:20:35 [kv_cache_utils.py:2327] CPU KV cache size: 524,288 tokens, Maximum concurrency for 4,096 tokens",
        "INFO 11-21 12:20:36 [gpu_model_runner.py:5000] Graph capturing finished in 4 secs, took 0.53 GiB",
        "INFO 11-21 12:20:38 [core.py:402] init engine (profile, create kv cache, warmup model) took 80.95 s",
    ]
    found = [next(name for name, pattern in _vllm_log.MILESTONES if pattern.search(line)) for line in lines]
    assert found == names
