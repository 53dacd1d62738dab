"""vLLM as an engine, most of it by launching the real one on this machine's CPU."""

from __future__ import annotations

import runpy
import sys

import pytest

from autotune import engines, process, spaces
from autotune.engines import vllm
from autotune.engines.base import Context
from autotune.trial import Configuration, FailureKind, Phase, TrialFailed

VLLM = engines.get("vllm")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def engine(store, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(store))
    fixed = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    return VLLM(VLLM.Options(kind="vllm", model="synthetic:nano", fixed=fixed, fork=True, start_timeout_s=280))


@pytest.fixture
def context(store, tmp_path):
    for name in ("trial", "scratch"):
        (tmp_path / name).mkdir()
    tag = process.make_tag(store, "test", 0)
    yield Context(study="test", trial=0, tag=tag, folder=tmp_path / "trial", scratch=tmp_path / "scratch", cache=store / ".cache")
    assert process.tagged(tag) == []


def configuration(**values):
    return Configuration(engine="vllm", values=values)


def refused(engine, context, **values):
    session = engine.open(engine.launch(configuration(**values), context), context)
    with session, pytest.raises(TrialFailed) as caught:
        session.wait_ready()
    return caught.value.failed


@pytest.mark.engine
@pytest.mark.parametrize("fork", [True, False])
def test_it_launches_serves_and_leaves_nothing(fork, engine, context, complete):
    engine = VLLM(engine.options.model_copy(update={"fork": fork}))
    launch = engine.launch(configuration(max_num_seqs=16, enable_prefix_caching=False), context)
    assert "--no-enable-prefix-caching" in launch.argv
    with engine.open(launch, context) as session:
        facts = session.wait_ready()
        assert facts["version"] == engine.identity().version
        assert facts["kv_tokens"] == (64 << 20) // 512
        assert facts["effective"]["max_num_seqs"] == 16
        assert facts["effective"]["enable_prefix_caching"] is False
        assert {"imports", "engine", "serve"} <= facts["seconds"].keys()
        assert complete(session) == 4
        assert session.reset_caches()
        session.check_alive()
        assert 0.3 < session.resources()["peak_memory_gib"] < 20
    stopped = session.stop()
    # With `fork`, vLLM may find a child of its own, just ended, on its port as it shuts down, and ends with 1 over that.
    assert stopped["returncode"] in ((0, 1) if fork else (0,)) and stopped["killed"] == 0
    assert process.port_listener(int(launch.endpoint.rpartition(":")[2])) is None


@pytest.mark.engine
def test_a_value_that_the_parser_refuses(engine, context):
    failed = refused(engine, context, kv_cache_dtype="fp7")
    assert (failed.kind, failed.phase) == (FailureKind.INVALID_CONFIG, Phase.START)
    assert "fp7" in " ".join(failed.evidence)


@pytest.mark.engine
def test_a_combination_that_vllm_refuses(engine, context):
    failed = refused(engine, context, max_num_seqs=512, max_num_batched_tokens=256)
    assert failed.kind is FailureKind.INVALID_CONFIG
    assert "max_num_batched_tokens" in " ".join(failed.evidence)


@pytest.mark.engine
def test_a_kv_cache_that_is_too_small(engine, context):
    failed = refused(engine, context, kv_cache_memory_bytes=1 << 20)
    assert failed.kind is FailureKind.OUT_OF_MEMORY
    assert "KV cache" in " ".join(failed.evidence)


@pytest.mark.engine
def test_flags_and_the_cross_check_come_from_the_installed_vllm(engine):
    flags = engine.flags()
    assert flags["max_num_seqs"].type == "int"
    assert (flags["gpu_memory_utilization"].low, flags["gpu_memory_utilization"].high) == (0, 1)
    assert flags["enable_prefix_caching"].negation == "--no-enable-prefix-caching"
    assert flags["speculative_config"].type == "json"
    assert flags["cudagraph_capture_sizes"].type == "list"
    assert "fp8" in flags["kv_cache_dtype"].choices
    assert "swap_space" not in flags
    ours, both, tensor, unknown = engine.preflight(
        [
            configuration(),
            configuration(max_num_seqs=512, max_num_batched_tokens=256),
            configuration(tensor_parallel_size=3),
            configuration(swap_space=4),
        ]
    )
    assert ours.refused is None
    assert (ours.resolved["max_num_seqs"], ours.resolved["block_size"]) == (128, 128)
    assert "max_num_batched_tokens" in both.refused
    assert "3" in tensor.refused
    assert "swap-space" in unknown.refused


@pytest.mark.engine
def test_the_space_names_only_flags_that_a_supported_vllm_has(engine):
    space, flags = spaces.load("vllm"), engine.flags()
    names = {member for name, parameter in space.parameters.items() for member in getattr(parameter, "members", (name,))}
    older = {"max_num_partial_prefills", "max_long_partial_prefills"}
    assert {name for name in names if not name.startswith("env.")} - set(flags) == older
    assert not set(space.parameters) & set(space.replaced)


def test_a_build_that_does_not_log_compiling_is_judged_by_its_cache(tmp_path):
    told = {"/server_info?config_format=json": {"vllm_config": {"model_config": {"enforce_eager": False}}}}
    (tmp_path / "entry").touch()
    state = lambda before, log="", told=told: vllm._confirm(tmp_path, before, told.get, log).get("compile_cache")  # noqa: E731
    assert state(0) == "cold"
    assert state(1) == "warm"
    assert state(1, "saved AOT compiled function to /x") == "cold"
    assert state(0, told={"/server_info?config_format=json": {"vllm_config": {"model_config": {"enforce_eager": True}}}}) is None
    assert state(0, told={}) is None


def test_a_forked_worker_gets_the_cores_that_vllm_chose(tmp_path):
    code = (
        "import importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('serve', {str(vllm._SERVE)!r})\n"
        "serve = importlib.util.module_from_spec(spec); spec.loader.exec_module(serve)\n"
        "first = min(os.sched_getaffinity(0))\n"
        "os.environ.update(OMP_PROC_BIND='true', OMP_PLACES='{%d}' % first, OMP_NUM_THREADS='1')\n"
        "serve.take_threads()\n"
        "import torch\n"
        "print(sorted(os.sched_getaffinity(0)) == [first], torch.get_num_threads())\n"
    )
    done = process.run([sys.executable, "-c", code], 120)
    assert done.stdout.split() == ["True", "1"], done.stderr


@pytest.mark.parametrize(
    ("env", "forks"),
    [
        ({}, False),
        ({"AUTOTUNE_FORK": "1"}, True),
        ({"AUTOTUNE_FORK": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, False),
        ({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, False),
    ],
)
def test_a_studys_own_way_to_start_processes_is_kept(monkeypatch, env, forks):
    for name in ("AUTOTUNE_FORK", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert runpy.run_path(str(vllm._SERVE))["forks"]() is forks
