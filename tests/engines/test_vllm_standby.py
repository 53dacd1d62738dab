"""A real vLLM on this machine's CPU, launched in an interpreter that has imported it ahead."""

from __future__ import annotations

import os

import pytest

from autotune import engines, process, standby
from autotune.engines.base import Context
from autotune.trial import Configuration

VLLM = engines.get("vllm")


def engine(tmp_path, monkeypatch, **options):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path))
    fixed = {"enforce_eager": True, "env.VLLM_CPU_KVCACHE_SPACE": "1"}
    return VLLM(VLLM.Options(kind="vllm", model="synthetic:nano", fixed=fixed, start_timeout_s=280, **options))


def served(one, context, number, complete):
    """Launch it, ask it, stop it: what it said, and what is known of its end."""
    context = context.model_copy(update={"folder": context.folder / str(number)})
    launch = one.launch(Configuration(engine="vllm", values={"max_num_seqs": 16}), context)
    with one.open(launch, context) as session:
        facts = session.wait_ready()
        assert complete(session) == 4
        assert session.reset_caches()
        session.check_alive()
        members = {found.pid for found in session._process.members()}
        assert set(process.tagged(context.tag)) <= members
    stopped = session.stop()
    # With `fork`, vLLM may find a child of its own, just ended, on its port as it shuts down, and ends with 1 over that.
    assert stopped["returncode"] in (0, 1) and stopped["killed"] == 0
    assert process.port_listener(int(launch.endpoint.rpartition(":")[2])) is None
    assert process.tagged(context.tag) == []
    return facts, (context.folder / "engine.log").read_text()


@pytest.mark.engine
def test_it_serves_in_it_as_it_does_without(tmp_path, monkeypatch, complete):
    one = engine(tmp_path, monkeypatch, fork=True, standby=True)
    scratch, tag = tmp_path / "scratch", process.make_tag(tmp_path, "test", 0)
    scratch.mkdir()
    context = Context(study="test", trial=0, tag=tag, folder=tmp_path, scratch=scratch, cache=tmp_path / ".cache")
    ahead = one.ahead(context.cache)
    threads, core = len(os.sched_getaffinity(0)), min(os.sched_getaffinity(0))
    with standby.held(ahead, env={}, scratch=scratch, tag=tag, cpus=[core], threads=threads) as waiting:
        assert waiting is not None and waiting.imported(280)
        adopted, log = served(one, context, 1, complete)
    plain, _ = served(one, context, 2, complete)
    assert adopted["standby"] is True, adopted
    assert "standby" not in plain
    changing = {"instance_id"}
    same = lambda facts: {name: value for name, value in facts["effective"].items() if name not in changing}  # noqa: E731
    assert same(adopted) == same(plain)
    assert adopted["kv_tokens"] == plain["kv_tokens"] == (1 << 30) // 512
    assert list(adopted["seconds"]) == list(plain["seconds"])
    assert "Application startup complete" in log
    print("start, s, in the waiting interpreter:", adopted["seconds"], "without:", plain["seconds"])


@pytest.mark.parametrize(
    ("option", "device", "wanted", "insists"),
    [("auto", "cpu", False, None), (True, "cpu", True, True), (False, "gpu", False, None), ("auto", "gpu", True, False)],
)
def test_it_is_wanted_where_it_has_cores_of_its_own(tmp_path, monkeypatch, option, device, wanted, insists):
    one = engine(tmp_path, monkeypatch, standby=option, fork=True)
    monkeypatch.setattr(VLLM, "on_cpu", device == "cpu")
    ahead = one.ahead(tmp_path)
    assert (ahead is not None) == wanted
    if ahead is not None:
        assert ahead.insist is insists and ahead.head[0] == one.python
        assert "CUDA_VISIBLE_DEVICES" not in ahead.env and ahead.env["VLLM_CACHE_ROOT"].startswith(str(tmp_path))
        without = engine(tmp_path, monkeypatch, standby=True, fork=False).ahead(tmp_path)
        assert set(without.modules) < set(ahead.modules), "forked children need what the server does not"


@pytest.mark.parametrize(("option", "device", "forks"), [("auto", "cpu", False), ("auto", "gpu", True), (False, "gpu", False)])
def test_it_forks_by_itself_on_a_gpu_only(tmp_path, monkeypatch, option, device, forks):
    one = engine(tmp_path, monkeypatch, fork=option, standby=True)
    monkeypatch.setattr(VLLM, "on_cpu", device == "cpu")
    ahead = one.ahead(tmp_path)
    assert ("AUTOTUNE_FORK" in ahead.env) is forks
    assert ("vllm.v1.engine.core" in ahead.modules) is forks
