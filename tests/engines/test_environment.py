"""What an engine's own environment is, and what the shell around it says."""

import os

from autotune.engines import _environment


def test_what_the_shell_tells_engines_is_known_but_for_credentials_and_what_a_launch_sets_itself(monkeypatch):
    for name in [name for name in os.environ if name.startswith(_environment._READ)]:
        monkeypatch.delenv(name)
    given = {"VLLM_USE_DEEP_GEMM": "0", "VLLM_API_KEY": "hush", "VLLM_CACHE_ROOT": "/x", "NCCL_P2P_DISABLE": "1"}
    for name, value in {**given, "VLLM_PROXY": "http://me:hush@host/", "EDITOR": "vi"}.items():
        monkeypatch.setenv(name, value)
    assert _environment.told_by_shell() == {"NCCL_P2P_DISABLE": "1", "VLLM_USE_DEEP_GEMM": "0"}
