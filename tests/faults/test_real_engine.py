"""The part of the campaign that strikes a real vLLM: its server, its EngineCore, and the driver above them."""

import importlib
import os
import signal
import time

import pytest

from autotune import engines, proc, process, workloads
from autotune.engines.base import Context
from autotune.evaluate import evaluate
from autotune.trial import Configuration, FailureKind, Phase, TrialJob

rigs = importlib.import_module("rig")
FIXED = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 512}
WORKLOAD = {
    "kind": "http",
    "traffic": {"input_tokens": 16, "output_tokens": 16},
    "load": [{"concurrency": 2}],
    "window": {"warm_up_s": 1, "measure_s": 4, "deadline_s": 30},
}
STUDY = """\
name: faults
engine:
  kind: vllm
  model: "synthetic:nano"
  start_timeout_s: 300
  fixed: {enforce_eager: true, kv_cache_memory_bytes: 67108864, max_model_len: 512}
workload:
  kind: http
  traffic: {input_tokens: 16, output_tokens: 16}
  load: [{concurrency: 2}]
  window: {warm_up_s: 1, measure_s: 4, deadline_s: 30}
search_space: {parameters: {max_num_seqs: {kind: values, values: [4, 8, 16]}}}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 2}
search: {sampler: random, baseline_every: 0}
finalists: {count: 0}
tracking: {enabled: false}
"""


@pytest.fixture
def context(tmp_path):
    tag = process.make_tag(tmp_path, "faults", 0)
    yield Context(
        study="faults", trial=0, tag=tag, folder=tmp_path / "trial", scratch=tmp_path / "scratch", cache=tmp_path / "cache"
    )
    assert process.tagged(tag) == []


def server_and_core(context):
    """Ids of the server's and of EngineCore's process; vLLM gives the latter its name as title."""
    everything = proc.table()
    tagged = [everything[pid] for pid in process.tagged(context.tag) if pid in everything]
    cores = [one for one in tagged if "EngineCore" in rigs.command_line(one.pid)]
    return [one.ppid for one in cores], [one.pid for one in cores]


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["EngineCore", "server"])
def test_a_kill_under_load_is_told_with_evidence_and_leaves_nothing(context, victim, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path))
    kind, load = engines.get("vllm"), workloads.get("http")
    engine = kind(kind.Options(kind="vllm", model="synthetic:nano", fixed=FIXED, start_timeout_s=300))
    struck = []

    def strike(label, share):
        if not struck and label != "start" and share > 0.5:
            servers, cores = server_and_core(context)
            struck.extend(cores if victim == "EngineCore" else servers)
            for pid in struck:
                os.kill(pid, signal.SIGKILL)

    job = TrialJob(number=0, configuration=Configuration(engine="vllm"))
    outcome = evaluate(job, engine, load(load.Options.model_validate(WORKLOAD)), context, strike).outcome
    assert struck
    assert outcome.status == "failed" and outcome.phase in (Phase.MEASURE, Phase.WARM_UP), outcome
    assert outcome.kind in (FailureKind.CRASHED if victim == "EngineCore" else FailureKind.MACHINE_FAULT,), outcome
    assert outcome.evidence and outcome.advice


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_a_driver_killed_above_a_real_engine_resumes_to_the_end(tmp_path):
    one = rigs.Rig(tmp_path)
    (one.folder / "study.yaml").write_text(STUDY)
    try:
        for wait_for in ("start", "load"):
            driver = one.start()
            strike_when(one, driver, wait_for)
            driver.kill()
            driver.wait()
            assert [found for found in one.left(30) if found.startswith("process")] == []
        assert one.run(600) == 0, one.log()
        records = one.history().records
        assert sorted(records) == [0, 1] and all(rigs.measured_of(record) for record in records.values())
        assert one.left() == []
    finally:
        one.close()


def strike_when(one, driver, moment):
    """Wait until the engine's start is well on its way, or until its first load client runs."""
    wanted = "_vllm/serve" if moment == "start" else "_load.worker"
    deadline = time.monotonic() + 400
    while not any(wanted in rigs.command_line(pid) for pid in rigs.own_processes(one.store)):
        assert driver.poll() is None and time.monotonic() < deadline, one.log()
        time.sleep(0.1)
    time.sleep(5.0 if moment == "start" else 1.0)
