"""Whatever stands in a study or a space file, planning answers with a plan or with our own error."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune import plan, preview, source, spaces, study
from autotune.errors import AutotuneError, InvalidInput

RECORDED = {
    "name": "small",
    "engine": {"kind": "recorded", "fixed": {"block_size": 16}, "noise": 0.03, "faults": {"crashed": 0.1}},
    "workload": {"kind": "recorded", "traffic": "chat", "load": [{"request_rate": 10}, {"concurrency": 512}]},
    "search_space": {
        "include": "recorded",
        "select": ["max_num_seqs", "kv_cache_dtype"],
        "override": {"max_num_seqs": {"low": 8, "high": 256}, "kv_cache_dtype": ["auto", "fp8"]},
        "parameters": {"max_num_batched_tokens": {"kind": "derived", "expr": "max_num_seqs * 32", "when": "max_num_seqs > 8"}},
        "forbid": ["max_num_seqs > max_num_batched_tokens", {"rule": "max_num_seqs == 8", "reason": "No."}],
        "engines": {"recorded": {"override": {"max_num_seqs": [8, 16]}}},
    },
    "objectives": [{"maximize": "output_tokens_per_s"}, {"minimize": "ttft_ms.p99 @ request_rate=10"}],
    "constraints": ["ttft_ms.p99 <= 500 @ request_rate=10"],
    "budget": {"trials": 12, "gpu_minutes": 90},
    "search": {"sampler": "tpe", "seed": 1, "options": {"n_ei_candidates": 12}},
    "first_trials": [{"max_num_seqs": 16}],
    "executor": {"kind": "local", "parallel": 1},
    "tracking": {"enabled": False, "uri": "http://localhost:5000"},
    "export": [],
}
HTTP = {
    "traffic": {"input_tokens": {"uniform": [4, 8]}, "output_tokens": {"lognormal": {"mean": 4, "std": 1, "max": 8}}},
    "load": [{"concurrency": 1}, {"request_rate": 2, "arrival": "poisson"}],
    "window": {"measure_s": 5},
}
SERVING = {
    "name": "two",
    "engine": [{"kind": "vllm", "model": "synthetic:tiny"}, {"kind": "sglang", "model": "synthetic:tiny"}],
    "workload": {"kind": "http", **HTTP},
    "search_space": {"select": ["max_concurrent_sequences"], "engines": {"vllm": {"override": {"max_num_seqs": [8, 16]}}}},
    "objectives": [{"maximize": "output_tokens_per_s"}],
    "first_trials": [{"engine": "vllm", "max_num_seqs": 16}],
}
TRL = {
    "name": "trl",
    "engine": {"kind": "trl", "model": "synthetic:learner-tiny", "fixed": {"beta": 0.1}, "cpu": True, "reward": "a.b"},
    "workload": {"kind": "training", "steps": 5, "seeds": [1, 2], "stop_when": {}},
    "search_space": {"include": "trl_grpo"},
    "objectives": [{"maximize": "sps"}],
}
VERL = {
    **TRL,
    "engine": {"kind": "verl", "model": "synthetic:learner-tiny", "dataset": "a.parquet", "reward": "a.py:b"},
    "search_space": {"include": "verl_ppo"},
}
SPACE = {
    "engine": "recorded",
    "parameters": {
        "max_num_seqs": {"kind": "power_of_two", "low": 8, "high": 64, "tuned": True, "canonical": "sequences"},
        "block_size": {"kind": "values", "values": [16, 32], "tuned": True, "when": "max_num_seqs > 8"},
        "pair": {"kind": "tuple", "members": ["max_num_batched_tokens", "enforce_eager"], "values": [[512, True]], "tuned": True},
    },
    "forbid": [{"rule": "max_num_seqs > 8 and block_size == 16", "reason": "No."}],
    "replaced": {"old": "new"},
}

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["a < b", "(", "x @ y=1", "ttft_ms.p99 <= 1e308", "synthetic:", "/dev/null", "http://[", "0x10", "12:30"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=5
)  # fmt: skip


def places(data, here=()):
    """Every place in a nested value."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*here, key)
        yield from places(value, (*here, key))


@st.composite
def broken(draw, base):
    """A right file with up to three places replaced, removed or added to."""
    data = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(data))
        if not known:
            break
        *above, key = draw(st.sampled_from(known))
        holder = data
        for part in above:
            holder = holder[part]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, list):
                holder.append(draw(VALUES))
            case "add":
                holder[draw(st.text(max_size=6))] = draw(VALUES)
    return data


def planned(data, folder, confirm):
    """Plan a study as the command line does."""
    try:
        parsed, text = study.validate(source.parse(yaml.safe_dump(data, allow_unicode=True), "study.yaml"))
        made = plan.assemble(parsed, text, folder)
        preview.preview(plan.confirm(made) if confirm else made)
    except AutotuneError as error:
        assert str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken(RECORDED))
def test_any_study_of_a_recorded_engine_is_planned_or_answered(tmp_path, data):
    planned(data, tmp_path, confirm=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken(SERVING) | broken(TRL) | broken(VERL))
def test_any_study_of_a_real_engine_is_planned_or_answered(tmp_path, data):
    planned(data, tmp_path, confirm=False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken(SPACE))
def test_any_space_file_is_planned_or_answered(tmp_path, data):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(data, allow_unicode=True))
    section = {"include": str(tmp_path / "own.yaml")}
    planned({**RECORDED, "engine": {"kind": "recorded"}, "first_trials": [], "search_space": section}, tmp_path, confirm=True)


@pytest.mark.parametrize("base", [RECORDED, SERVING, TRL, SPACE], ids=["recorded", "serving", "trl", "space"])
def test_the_files_that_are_broken_here_were_right(tmp_path, base):
    if base is SPACE:
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(SPACE))
        assert len(spaces.load(str(tmp_path / "own.yaml")).parameters) == 3
        return
    parsed, text = study.validate(source.parse(yaml.safe_dump(base)))
    assert preview.preview(plan.assemble(parsed, text, tmp_path)).study == base["name"]


SHIPPED = sorted(path for path in (Path(__file__).parents[1] / "studies").rglob("*.yaml") if "results" not in path.parts)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_study_that_ships_has_no_mistake(path, tmp_path):
    """Its engine's environment need not be here."""
    try:
        plan.read(path, tmp_path)
    except InvalidInput as error:
        assert [str(one) for one in error.mistakes if not one.path.endswith(".python")] == []
