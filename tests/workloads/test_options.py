import re

import pytest
from pydantic import ValidationError

from autotune import engines
from autotune.workloads import get
from autotune.workloads._load.presets import PRESETS
from autotune.workloads.http import HttpOptions, HttpWorkload

TRAFFIC = {"input_tokens": 16, "output_tokens": 8}
BASE = {"kind": "http", "traffic": TRAFFIC, "load": [{"concurrency": 2}]}


def options(**changes):
    return HttpOptions.model_validate({**BASE, **changes})


def test_found_by_its_name():
    assert get("http") is HttpWorkload
    assert HttpWorkload.needs == "http"


def test_levels_carry_their_load_and_a_climb_none():
    climb = {"constraints": ["ttft_ms.p99 <= 500"], "start": 2, "max_steps": 5}
    workload = HttpWorkload(options(load=[{"request_rate": 4}, {"concurrency": 8}, {"slo_climb": climb}]))
    assert workload.levels() == ({"request_rate": 4.0}, {"concurrency": 8})
    assert {"slo_request_rate", "goodput_per_s", "ttft_ms.p99"} <= workload.metrics()
    assert workload.expected_seconds() == pytest.approx(7 * (10 + 20 + 3))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_json(preset):
    found = HttpOptions.model_validate({"kind": "http", "preset": preset})
    assert HttpOptions.model_validate_json(found.model_dump_json()) == found


def test_a_window_of_one_expected_request_is_enough():
    assert options(load=[{"request_rate": 0.05}, {"concurrency": 1}]).window.measure_s == 20


def test_a_section_overrides_its_preset():
    found = HttpOptions.model_validate({"kind": "http", "preset": "offline", "load": [{"concurrency": 3}]})
    assert [load.level for load in found.load] == [{"concurrency": 3}]
    assert found.traffic.input_tokens.uniform == (512, 1536)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": [{}]}, "needs exactly one of request_rate, concurrency, replay, slo_climb; none is given"),
        ({"load": [{"request_rate": 1, "concurrency": 2}]}, "request_rate, concurrency is given"),
        ({"load": []}, "at least 1 item"),
        ({"load": [{"concurrency": 2}, {"concurrency": 2}]}, "This load level stands twice in the list"),
        (
            {"load": [{"slo_climb": {"constraints": [text], "start": 1}} for text in ("ttft_ms.p99 <= 5", "tpot_ms.p95 <= 5")]},
            "A second climb would overwrite the first one's rate",
        ),
        ({"load": [{"replay": 1}]}, "A load of replay needs a trace"),
        ({"load": [{"request_rate": 1, "arrival": "regular"}]}, "'regular' is none of poisson, constant"),
        ({"load": [{"request_rate": 1, "arrival": {"burstiness": 0}}]}, "greater than 0"),
        ({"load": [{"concurrency": 0}]}, "greater than 0"),
        ({"load": [{"slo_climb": {"constraints": ["ttft <= 5"], "start": 1}}]}, "There is no metric 'ttft'"),
        ({"load": [{"slo_climb": {"constraints": ["ttft_ms.p99 < 5"], "start": 1}}]}, "is not of the form"),
        ({"load": [{"slo_climb": {"constraints": ["ttft_ms.p99 <= 1e"], "start": 1}}]}, "is not a number"),
        ({"load": [{"slo_climb": {"constraints": ["ttft_ms.p99 <= 0"], "start": 1}}]}, "a limit above zero"),
        ({"load": [{"slo_climb": {"constraints": ["kv_cache_usage >= 95"], "start": 1}}]}, "is never above 1"),
        ({"load": [{"slo_climb": {"constraints": ["start_s <= 9"], "start": 1}}]}, "a metric of a load level"),
        ({"traffic": {"input_tokens": 16}}, "needs input_tokens and output_tokens, or a dataset, or a trace"),
        ({"traffic": {**TRAFFIC, "input_tokens": {"uniform": [9, 3]}}}, "9 is above 3"),
        ({"traffic": {**TRAFFIC, "input_tokens": {"normal": {"mean": 5, "std": 1, "min": 9, "max": 3}}}}, "min .9. is above max"),
        ({"traffic": {**TRAFFIC, "input_tokens": {}}}, "exactly one of exactly, uniform, normal, lognormal"),
        ({"traffic": {**TRAFFIC, "input_tokens": True}}, "valid dictionary"),
        ({"traffic": {**TRAFFIC, "dataset": "a.jsonl"}}, "brings its own prompts"),
        ({"traffic": {"dataset": "a", "trace": "b"}}, "a dataset or a trace, not both"),
        ({"traffic": {**TRAFFIC, "inputs": 3}}, "Extra inputs are not permitted"),
        ({"preset": "chatty"}, "'chat', 'offline'"),
        ({"goodput": {"latency": 3}}, "'ttft_ms', 'tpot_ms'"),
        ({"min_finished_share": 1.5}, "less than or equal to 1"),
        ({"window": {"measure_s": 0}}, "greater than 0"),
        ({"load": [{"request_rate": 0.02}]}, r"20 s sees fewer than one request at this rate, 0\.4 on average.* to 50 or more"),
        ({"load": [{"slo_climb": {"constraints": ["ttft_ms.p99 <= 5"], "start": 0.01}}]}, "fewer than one request"),
        ({"endpoint": "responses"}, "'completions' or 'chat'"),
        ({"clients": 0}, "greater than 0"),
    ],
)
def test_mistakes_have_one_clear_message(changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "dataset",
            "{}\n",
            r"Line 1 of .*data.jsonl cannot be used. The endpoint completions needs one of prompt, prompt_token_ids",
        ),
        ("dataset", "nonsense\n", "not a JSON object"),
        ("dataset", "", "holds no requests"),
        ("dataset", '{"prompt": "a"}\n', "no output_tokens here"),
        ("dataset", '{"prompt": "a", "output_tokens": 0}\n', "whole number above zero, not 0"),
        ("trace", '{"timestamp": 1, "input_length": 0, "output_length": 3}\n', "input_length must be a number above zero, not 0"),
        ("trace", '{"timestamp": 1, "input_length": 5}\n', "output_length must be a number above zero, not None"),
        ("trace", '{"timestamp": 1, "input_length": 5, "output_length": 3, "hash_ids": ["a"]}\n', "list of whole numbers"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    (mistake,) = HttpWorkload(options(traffic={name: path})).check()
    assert re.search(message, str(mistake))
    assert mistake.path == f"traffic.{name}"


def test_a_missing_file_is_named(tmp_path):
    (mistake,) = HttpWorkload(options(traffic={"dataset": tmp_path / "none.jsonl"})).check()
    assert "No such file" in str(mistake)


def test_the_mean_request():
    traffic = {"input_tokens": {"uniform": [10, 30]}, "output_tokens": 8, "shared_prefix": {"tokens": 100}, "turns": 3}
    shape = HttpWorkload(options(traffic=traffic, load=[{"concurrency": 5}, {"concurrency": 9}])).request_shape()
    assert (shape.shared_tokens, shape.input_tokens, shape.output_tokens, shape.concurrency) == (128, 148, 8, 9)


CONVERSATION = {"input_tokens": 100, "output_tokens": {"uniform": [100, 200]}, "turns": 3, "shared_prefix": {"tokens": 200}}
TAIL = {"input_tokens": {"normal": {"mean": 100, "std": 100, "max": 9000}}, "output_tokens": 8}


@pytest.mark.parametrize(
    ("kind", "fixed", "traffic", "path"),
    [
        ("vllm", {"max_model_len": 900}, CONVERSATION, "fixed.max_model_len"),
        ("sglang", {"context_length": 900}, CONVERSATION, "fixed.context_length"),
        ("sglang", {"context_length": 1100}, CONVERSATION, None),
        ("vllm", {"max_model_len": "1k"}, CONVERSATION, None),
        ("vllm", {}, {"input_tokens": 1 << 20, "output_tokens": 1}, "model"),
        ("vllm", {"max_model_len": 512}, TAIL, None),
    ],
)
def test_requests_that_need_more_context_than_the_engine_has_are_a_mistake(kind, fixed, traffic, path):
    """But for so few that a level stays valid without them."""
    engine = engines.get(kind)
    made = engine(engine.Options(kind=kind, model="synthetic:tiny", fixed=fixed))
    found = list(HttpWorkload(options(traffic=traffic)).against(made))
    assert [one.path for one in found] == ([] if path is None else [path])
    assert all("longer context" in str(one) for one in found)
