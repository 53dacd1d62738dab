from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.engines._recorded.recording import FOLDER, load
from autotune.engines._recorded.surface import surface
from autotune.engines.base import Context
from autotune.engines.recorded import DEFAULT_RECORDING, RecordedEngine, RecordedOptions
from autotune.errors import NotFound
from autotune.trial import Configuration, FailureKind, TrialFailed
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions


def engine(**options: object) -> RecordedEngine:
    return RecordedEngine(RecordedOptions(kind="recorded", **options))


def workload(**options: object) -> RecordedWorkload:
    return RecordedWorkload(RecordedWorkloadOptions(kind="recorded", **options))


def context(trial: int = 0, seed: int = 0, attempt: int = 1) -> Context:
    here = Path("/nowhere")
    return Context(study="s", trial=trial, attempt=attempt, tag="t", folder=here, scratch=here, cache=here, seed=seed)


def run(values, where=None, traffic="chat", **options):
    ran, where = engine(**options), where or context()
    with ran.open(ran.launch(Configuration(engine="recorded", values=values), where), where) as session:
        facts = session.wait_ready()
        measurement = workload(traffic=traffic).run(session, where, lambda label, share: None)
    return facts, measurement, session.stop()


RECORDED = [launch for launch in load(DEFAULT_RECORDING).launches if launch.levels]


@pytest.mark.parametrize("launch", RECORDED, ids=lambda launch: str(launch.idx))
def test_a_recorded_configuration_is_replayed_to_the_digit(launch):
    _, measurement, stopped = run(launch.config, noise=0.0)
    levels = [level for level in launch.levels if level.kind == "chat"]
    assert [row.metrics["output_tokens_per_s"] for row in measurement.rows] == [level.out_tps for level in levels]
    assert [row.metrics["ttft_ms.p99"] for row in measurement.rows] == [level.ttft.p99 for level in levels]
    assert measurement.totals["kv_cache_tokens"] == launch.kv_tokens
    assert stopped["seconds"]["start"] == launch.start_s


def test_it_names_itself_as_recorded_everywhere():
    facts, measurement, stopped = run({})
    identity = engine().identity()
    assert identity.version == "recorded vllm-0.26.0"
    assert identity.device == "NVIDIA H200 (recorded)"
    assert f"{identity.version} on {identity.device}".count("H200") == 1, "as whatever shows both does, such as the doctor"
    assert facts["version"] == identity.version
    assert measurement.facts["simulated"] and stopped["simulated"]


def test_simulated_seconds_cover_the_whole_life_of_a_failed_launch_too():
    ran, where = engine(), context()
    configuration = Configuration(engine="recorded", values={"gpu_memory_utilization": 0.1})
    session = ran.open(ran.launch(configuration, where), where)
    with pytest.raises(TrialFailed) as caught, session:
        session.wait_ready()
    assert caught.value.failed.kind is FailureKind.OUT_OF_MEMORY
    assert caught.value.failed.advice
    assert session.stop()["seconds"].keys() == {"start", "stop"}
    assert 30 < session.stop()["seconds"]["start"] < 60


@pytest.mark.parametrize(("utilization", "starts"), [(0.10, False), (0.11, False), (0.13, True), (0.16, True)])
def test_the_memory_bound_decides_between_recorded_launches(utilization, starts):
    assert (surface(DEFAULT_RECORDING).answer({"gpu_memory_utilization": utilization}).error is None) is starts


def test_what_the_recording_cannot_answer_is_refused():
    verdicts = engine().preflight(
        [
            Configuration(engine="recorded", values=values)
            for values in (
                {"max_num_seqs": 4096},
                {"kv_cache_dtype": "int4"},
                {"swap_space": 4},
                {"max_num_seqs": 1024, "max_num_batched_tokens": 512},
            )
        ]
    )
    assert [verdict.refused is not None for verdict in verdicts] == [True] * 4
    with pytest.raises(TrialFailed) as caught:
        run({"max_num_seqs": 100}, interpolate=False)
    assert caught.value.failed.kind is FailureKind.INVALID_CONFIG
    assert "interpolation is switched off" in caught.value.failed.evidence[0]


def test_noise_is_seeded_by_the_trial_and_off_when_asked():
    def tokens(**settings):
        return run({}, context(**settings), noise=0.05)[1].rows[-1].metrics["output_tokens_per_s"]

    assert tokens(trial=1) == tokens(trial=1)
    assert len({tokens(trial=trial) for trial in range(5)} | {tokens(trial=0, attempt=2), tokens(trial=0, seed=9)}) == 7


def test_noise_has_the_size_it_says():
    found = [run({}, context(trial=trial), noise=0.05)[1].rows[-1].metrics["output_tokens_per_s"] for trial in range(200)]
    mean = sum(found) / len(found)
    deviation = (sum((value / mean - 1) ** 2 for value in found) / len(found)) ** 0.5
    assert 0.04 < deviation < 0.06
    assert abs(mean / 6742.2 - 1) < 0.02


def test_interpolation_is_within_its_cross_validated_error():
    errors = {(error.level, error.metric): error for error in surface(DEFAULT_RECORDING).errors()}
    assert errors["chat/concurrency/512", "out_tps"].root_mean_square < 0.12
    assert errors["chat/rate/30", "out_tps"].root_mean_square < 0.10
    assert errors["", "mem_gib"].root_mean_square < 0.05


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.integers(8, 1024),
    batched=st.integers(1024, 16384),
    utilization=st.floats(0.1, 0.92),
    block=st.sampled_from([16, 32, 64, 128]),
    eager=st.booleans(),
    cached=st.booleans(),
    dtype=st.sampled_from(["auto", "fp8"]),
)
def test_any_configuration_within_the_recording_has_an_answer_within_the_recording(
    sequences, batched, utilization, block, eager, cached, dtype
):
    values = {
        "max_num_seqs": sequences,
        "max_num_batched_tokens": batched,
        "gpu_memory_utilization": utilization,
        "block_size": block,
        "enforce_eager": eager,
        "enable_prefix_caching": cached,
        "kv_cache_dtype": dtype,
    }
    answer = surface(DEFAULT_RECORDING).answer(values)
    if answer.error is not None:
        assert utilization < 0.15
        return
    best = max(level.out_tps for launch in RECORDED for level in launch.levels)
    for level in answer.levels:
        assert 0 < level.out_tps <= best * 1.001
        assert level.ttft.p50 <= level.ttft.p90 <= level.ttft.p95 <= level.ttft.p99
        assert 0 <= level.ok <= level.n and level.cut >= 0
    assert answer.total_s > answer.start_s > 0


def test_an_overloaded_open_loop_level_is_invalid_and_a_closed_loop_is_not():
    _, measurement, _ = run(next(launch.config for launch in RECORDED if launch.idx == 2), noise=0.0)
    assert [row.invalid is not None for row in measurement.rows] == [False, False, True, False]


def test_faults_come_at_their_share_and_a_retry_cures_a_machine_fault():
    def failure(trial, attempt=1, **faults):
        values = {"max_num_seqs": 8 + trial}
        try:
            run(values, context(trial, attempt=attempt), faults=faults)
        except TrialFailed as error:
            return error.failed.kind
        return None

    crashed = [failure(trial, crashed=0.3) for trial in range(200)]
    assert 40 <= crashed.count("crashed") <= 80
    assert crashed == [failure(trial, 2, crashed=0.3) for trial in range(200)]
    faulty = [trial for trial in range(100) if failure(trial, **{"machine-fault": 0.3}) == "machine-fault"]
    assert 15 <= len(faulty) <= 45
    assert any(failure(trial, 2, **{"machine-fault": 0.3}) is None for trial in faulty)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("engine", {"data": "vllm-0.26.0-llama9b"}, "Did you mean 'vllm-0.26.0-llama8b'"),
        ("engine", {"faults": {"crashed": 0.7, "unhealthy": 0.7}}, "add up to 1"),
        ("workload", {"traffic": "chats"}, "chat, prefix"),
        ("workload", {"load": [{"request_rate": 11}]}, "no load level"),
    ],
)
def test_bad_options_are_one_clear_message(kind, options, text):
    with pytest.raises(ValidationError, match=text):
        engine(**options) if kind == "engine" else workload(**options)


def test_a_recording_of_ones_own(tmp_path):
    for suffix in (".jsonl", ".json"):
        (tmp_path / f"mine{suffix}").write_bytes((FOLDER / f"{DEFAULT_RECORDING}{suffix}").read_bytes())
    path = tmp_path / "mine.jsonl"
    assert engine(data=str(path)).identity().version == "recorded vllm-0.26.0"
    about = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").unlink()
    load.cache_clear()
    with pytest.raises(NotFound, match="needs its description"):
        load(str(path))
    assert about["device"] == "NVIDIA H200"
