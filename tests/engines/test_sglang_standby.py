"""A real SGLang on this machine's CPU, launched in interpreters that have imported it ahead: its server and what that spawns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune import engines, process, standby
from autotune.engines.base import Context
from autotune.trial import Configuration

PYTHON = Path(".venvs/sglang/bin/python")
SGLANG = engines.get("sglang")


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON.exists(), reason="SGLang is not installed here; the line that installs it: make engine-sglang")
def test_it_serves_in_them_as_it_does_without(tmp_path, monkeypatch, complete):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path))
    fixed = {"device": "cpu", "context_length": 1024, "max_total_tokens": 16384}
    one = SGLANG(
        SGLANG.Options(kind="sglang", model="synthetic:nano", python=PYTHON, fixed=fixed, start_timeout_s=280, standby=True)
    )
    scratch, tag = tmp_path / "scratch", process.make_tag(tmp_path, "test", 0)
    scratch.mkdir()
    context = Context(study="test", trial=0, tag=tag, folder=tmp_path, scratch=scratch, cache=tmp_path / ".cache", seed=7)

    def served(number):
        place = context.model_copy(update={"folder": tmp_path / str(number)})
        launch = one.launch(Configuration(engine="sglang", values={"page_size": 16}), place)
        with one.open(launch, place) as session:
            facts = session.wait_ready()
            assert complete(session, [5, 6, 7] * 20, 8) == 8
            assert session.reset_caches()
            session.check_alive()
            assert set(process.tagged(tag)) <= {found.pid for found in session._process.members()}
        assert session.stop().get("survivors") is None and process.tagged(tag) == []
        return facts, (place.folder / "engine.log").read_text()

    threads, core = len(os.sched_getaffinity(0)), min(os.sched_getaffinity(0))
    with standby.held(one.ahead(context.cache), env={}, scratch=scratch, tag=tag, cpus=[core], threads=threads) as waiting:
        assert waiting is not None and waiting.imported(280)
        adopted, log = served(1)
    plain, _ = served(2)
    assert adopted["standby"] is True, adopted
    assert "standby" not in plain
    assert "imports of its own" not in log, log[:2000]
    changing = {"port", "nccl_port"}
    same = lambda facts: {name: value for name, value in facts["effective"].items() if name not in changing}  # noqa: E731
    assert same(adopted) == same(plain) and adopted["kv_tokens"] == plain["kv_tokens"] == 16384
    assert list(adopted["seconds"]) == list(plain["seconds"])
    print("start, s, in the waiting interpreters:", adopted["seconds"], "without:", plain["seconds"])


@pytest.mark.parametrize(
    ("option", "device", "wanted", "insists"),
    [("auto", "cpu", False, None), (True, "cpu", True, True), (False, "gpu", False, None), ("auto", "gpu", True, False)],
)
def test_they_are_wanted_where_they_have_cores_of_their_own(tmp_path, monkeypatch, option, device, wanted, insists):
    one = SGLANG(SGLANG.Options(kind="sglang", model="synthetic:nano", standby=option))
    monkeypatch.setattr(SGLANG, "on_cpu", device == "cpu")
    ahead = one.ahead(tmp_path)
    assert (ahead is not None) == wanted
    if ahead is not None:
        assert ahead.insist is insists and ahead.head[0] == one.python
        assert ("stood_in" in ahead.modules) == ("stood_in" in ahead.spawned.modules) == (device == "cpu")
        assert "CUDA_VISIBLE_DEVICES" not in ahead.env and ahead.spawned.count == 2
