from __future__ import annotations

from dataclasses import replace

import pytest

from autotune import models
from autotune.engines._recorded.recording import load
from autotune.feasibility.memory import UNEXPLAINED_GIB

RECORDING = load("vllm-0.26.0-llama8b")
UNCALIBRATED = replace(RECORDING.memory(), corrections=())


@pytest.mark.parametrize("launch", RECORDING.launches, ids=lambda launch: str(launch.idx))
def test_every_recorded_launch_is_judged_right_and_its_kv_cache_predicted_within_five_percent(launch):
    values = RECORDING.resolve(launch.config)
    if launch.error is not None:
        assert UNCALIBRATED.too_small(values, UNEXPLAINED_GIB) is not None
    else:
        assert UNCALIBRATED.too_small(values) is None
        assert UNCALIBRATED.need(values).kv_tokens == pytest.approx(launch.kv_tokens, rel=0.05)


def test_the_8b_model_has_fifteen_gib_of_weights_and_128_kib_of_kv_cache_per_token():
    shape = RECORDING.about.model
    assert shape.weights_gib == pytest.approx(14.96, abs=0.01)
    assert shape.kv_bytes_per_token() == 131072
    assert shape.kv_bytes_per_token("fp8") == 65536


def test_a_cut_says_what_is_missing():
    reason = UNCALIBRATED.too_small({"gpu_memory_utilization": 0.10})
    assert reason is not None and "14.0 GiB holds 15.0 GiB of weights" in reason


def test_a_measured_kv_cache_corrects_the_bound():
    values = RECORDING.resolve({"gpu_memory_utilization": 0.2})
    expected = UNCALIBRATED.need(values).kv_tokens
    hungrier = UNCALIBRATED.calibrated(values, expected - 16384)
    assert hungrier.bias_gib == pytest.approx(2.0, abs=0.01)
    assert hungrier.need(values).kv_tokens == pytest.approx(expected - 16384)


def test_the_correction_is_the_median_of_what_was_measured_in_any_order():
    values = RECORDING.resolve({"gpu_memory_utilization": 0.2})
    expected, found = UNCALIBRATED.need(values).kv_tokens, UNCALIBRATED
    for missing_gib, bias in ((3.0, 3.0), (1.0, 2.0), (2.0, 2.0), (9.0, 2.5)):
        found = found.calibrated(values, expected - 8192 * missing_gib)
        assert found.bias_gib == pytest.approx(bias, abs=0.01)


def test_an_uncalibrated_bound_cuts_only_what_is_far_off():
    values = RECORDING.resolve({"gpu_memory_utilization": 0.115})
    assert UNCALIBRATED.too_small(values) is None
    assert UNCALIBRATED.calibrated({}, UNCALIBRATED.need({}).kv_tokens).too_small(values) is not None


@pytest.mark.parametrize("unknown", [{"quantization": "fp8"}, {"cpu_offload_gb": 8}, {"dtype": "float32"}])
def test_what_the_model_does_not_describe_is_never_cut(unknown):
    assert UNCALIBRATED.too_small({"gpu_memory_utilization": 0.05, **unknown}) is None


def test_more_ranks_share_the_weights():
    one, two = (UNCALIBRATED.need({"tensor_parallel_size": size}) for size in (1, 2))
    assert two.weights_gib == one.weights_gib / 2
    assert two.kv_tokens > 2 * one.kv_tokens


def test_a_synthetic_model_is_the_recorded_one():
    assert models.facts("synthetic:llama-3.1-8b") == RECORDING.about.model


def test_nothing_is_said_of_a_model_that_is_not_counted():
    facts = models.facts("synthetic:llama-3.1-8b")
    assert facts.counted
    for unknown in ({"parameters": None}, {"latent_kv": 576}, {"dtype": "float8_of_tomorrow"}):
        assert not facts.model_copy(update=unknown).counted
