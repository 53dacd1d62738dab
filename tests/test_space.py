"""The search space: points and configurations are two spellings of one thing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune import conditions, spaces
from autotune.distributions import Choice, FloatRange, IntRange
from autotune.rules import StudyRule
from autotune.space import EngineSpace, Space, SpaceFile
from autotune.trial import Configuration

FILE = SpaceFile.model_validate(
    {
        "engine": "vllm",
        "parameters": {
            "max_num_seqs": {"kind": "power_of_two", "low": 8, "high": 1024},
            "gpu_memory_utilization": {"kind": "float", "low": 0.5, "high": 0.95, "step": 0.05},
            "max_num_batched_tokens": {"kind": "int", "low": 512, "high": 4096, "step": 512},
            "block_size": {"kind": "values", "values": [16, 32, 64, 128]},
            "kv_cache_dtype": {"kind": "categorical", "values": ["auto", "fp8", None]},
            "enable_prefix_caching": {"kind": "flag"},
            "prefix_caching_hash_algo": {
                "kind": "categorical",
                "values": ["sha256", "xxhash"],
                "when": "enable_prefix_caching == true",
            },
            "parallel": {
                "kind": "tuple",
                "members": ["tensor_parallel_size", "data_parallel_size"],
                "values": [[1, 1], [2, 1], [1, 2]],
            },
            "cudagraph_capture_sizes": {"kind": "categorical", "values": [[1, 2, 4], [1, 8]]},
            "long_prefill_token_threshold": {"kind": "derived", "expr": "max_num_batched_tokens // 2"},
            "dtype": {"kind": "fixed", "value": "bfloat16"},
        },
        "forbid": [{"rule": "max_num_batched_tokens < max_num_seqs", "reason": "the engine refuses it"}],
    }
)
ONE = Space([EngineSpace(engine="vllm", parameters=FILE.parameters, forbid=FILE.forbid)])
TWO = Space(
    [
        EngineSpace(engine="vllm", parameters=FILE.parameters, forbid=FILE.forbid),
        EngineSpace(engine="sglang", parameters={"page_size": FILE.parameters["block_size"]}),
    ]
)


def drawn(space, seed):
    generator = random.Random(seed)

    def choose(name, distribution):
        match distribution:
            case Choice(values):
                return generator.choice(values)
            case IntRange(low, high, step, _):
                return generator.randrange(low, high + 1, step)
            case FloatRange(low, high, None, _):
                return generator.uniform(low, high)
            case FloatRange(low, high, step, _):
                return low + step * generator.randrange(round((high - low) / step) + 1)

    return space.suggest(choose)


@given(st.integers(0, 10_000), st.sampled_from([ONE, TWO]))
def test_decode_then_encode_is_the_same_point(seed, space):
    point = drawn(space, seed)
    configuration = space.decode(point)
    assert space.encode(configuration, {}) == pytest.approx(point)
    assert set(space.distributions(point)) == set(point)


def test_decode_expands_tuples_and_computes_derived_values():
    point = drawn(ONE, 1)
    values = ONE.decode(point).values
    assert {"tensor_parallel_size", "data_parallel_size", "dtype"} <= set(values)
    assert "parallel" not in values
    assert values["long_prefill_token_threshold"] == values["max_num_batched_tokens"] // 2
    assert values["max_num_seqs"] in {2**k for k in range(3, 11)}


def test_a_condition_decides_whether_a_parameter_exists():
    for seed in range(40):
        values = ONE.decode(drawn(ONE, seed)).values
        assert ("prefix_caching_hash_algo" in values) == values["enable_prefix_caching"]


def test_a_space_over_engines_makes_the_engine_a_parameter():
    engines = {TWO.decode(drawn(TWO, seed)).engine for seed in range(20)}
    assert engines == {"vllm", "sglang"}
    assert all("page_size" in TWO.decode(p).values for p in (drawn(TWO, s) for s in range(20)) if p["engine"] == "sglang")


def test_forbid_rules_apply_and_carry_their_reason():
    rule = ONE.forbidden(Configuration(engine="vllm", values={"max_num_batched_tokens": 512, "max_num_seqs": 1024}))
    assert rule is not None
    assert rule.reason == "the engine refuses it"
    assert ONE.forbidden(Configuration(engine="vllm")) is None


def test_a_rule_that_holds_for_the_default_itself_forbids_nothing():
    facts = {"max_num_batched_tokens": 512, "max_num_seqs": 1024}
    assert ONE.forbidden(Configuration(engine="vllm", values={"block_size": 32}), facts) is None
    broken = Configuration(engine="vllm", values={"max_num_seqs": 1024})
    assert ONE.forbidden(broken, {"max_num_batched_tokens": 512, "max_num_seqs": 8})


def test_a_rule_of_the_study_holds_even_where_the_default_breaks_it():
    """`forbid: ["max_num_seqs > 512"]` was no rule at all on an engine whose default is 1024."""
    wish = StudyRule(rule="max_num_seqs > 512", reason="The study forbids it.")
    space = Space([EngineSpace(engine="vllm", parameters=FILE.parameters, forbid=(wish,))])
    facts = {"max_num_seqs": 1024}
    for value, forbidden in ((1024, True), (768, True), (512, False)):
        assert (space.forbidden(Configuration(engine="vllm", values={"max_num_seqs": value}), facts) == wish) == forbidden
    assert space.forbidden(Configuration(engine="vllm", values={"block_size": 32}), facts) is None
    assert space.forbidden(Configuration(engine="vllm"), facts) is None


def test_the_default_outside_the_space_has_no_point():
    resolved = {**ONE.decode(drawn(ONE, 3)).values}
    assert ONE.encode(Configuration(engine="vllm"), resolved) is not None
    assert ONE.encode(Configuration(engine="vllm"), {**resolved, "max_num_seqs": 4096}) is None
    assert ONE.encode(Configuration(engine="vllm"), {**resolved, "max_num_seqs": 100}) is None
    assert ONE.encode(Configuration(engine="vllm"), {}) is None


@pytest.mark.parametrize(
    ("engine", "name", "default"),
    [
        ("vllm", "gpu_memory_utilization", 0.9),
        ("vllm", "gpu_memory_utilization", 0.92),
        ("trl_grpo", "vllm_gpu_memory_utilization", 0.3),
        ("verl_ppo", "actor_rollout_ref.rollout.gpu_memory_utilization", 0.5),
    ],
)
def test_the_steps_of_a_shipped_range_meet_the_engines_default(engine, name, default):
    """Else the sampler learns nothing from the default, nor from what a study names without setting this."""
    assert spaces.load(engine).parameters[name].encode(name, {name: default}) == default


def test_digest_follows_ranges_not_descriptions():
    def digest(**changes):
        parameter = {"kind": "power_of_two", "low": 8, "high": 1024, **changes}
        file = SpaceFile.model_validate({"engine": "vllm", "parameters": {"max_num_seqs": parameter}})
        return Space([EngineSpace(engine="vllm", parameters=file.parameters)]).digest

    assert digest() != digest(high=512)


@pytest.mark.parametrize(
    "parameter",
    [
        {"kind": "int", "low": 5, "high": 1},
        {"kind": "int", "low": 0, "high": 8, "log": True},
        {"kind": "int", "low": 1, "high": 8, "log": True, "step": 2},
        {"kind": "int", "low": 1, "high": 8, "step": 0},
        {"kind": "float", "low": float("nan"), "high": 1},
        {"kind": "power_of_two", "low": 3, "high": 8},
        {"kind": "values", "values": [3, 2, 1]},
        {"kind": "values", "values": []},
        {"kind": "categorical", "values": ["a", "a"]},
        {"kind": "tuple", "members": ["a", "b"], "values": [[1]]},
        {"kind": "derived", "expr": "import os"},
        {"kind": "flag", "when": "a <"},
        {"kind": "flag", "typo": 1},
        {"kind": "nothing"},
    ],
)
def test_broken_parameters_are_refused(parameter):
    with pytest.raises(ValidationError):
        SpaceFile.model_validate({"engine": "vllm", "parameters": {"x": parameter}})


def test_conditions_read_what_the_engine_resolved_where_nothing_is_set():
    space = Space([EngineSpace(engine="vllm", parameters={"hash": FILE.parameters["prefix_caching_hash_algo"]})])
    assert drawn(space, 1) == {}
    assert set(drawn(space.knowing({"vllm": {"enable_prefix_caching": True}}), 1)) == {"hash"}
    fixed = EngineSpace(engine="vllm", parameters=space.engines["vllm"].parameters, fixed={"enable_prefix_caching": False})
    assert drawn(Space([fixed]).knowing({"vllm": {"enable_prefix_caching": True}}), 1) == {}
    assert space.knowing({"vllm": {"enable_prefix_caching": True}}).digest == space.digest


def test_parameters_come_after_those_their_conditions_read():
    names = ["prefix_caching_hash_algo", "long_prefill_token_threshold", "enable_prefix_caching", "max_num_batched_tokens"]
    order = list(conditions.ordered({name: FILE.parameters[name] for name in names}))
    assert order == ["enable_prefix_caching", "prefix_caching_hash_algo", "max_num_batched_tokens", "long_prefill_token_threshold"]
