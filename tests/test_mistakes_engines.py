"""Mistakes in studies of real engines: their traffic, models, files and flags, several engines, and training runs."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import pytest

from autotune import notes, plan, process, spaces
from autotune.engines.base import Identity
from autotune.errors import InvalidInput

SERVING = """\
name: serving
engine:
  kind: vllm
  model: synthetic:tiny
  fixed: {max_model_len: 1024}
workload:
  kind: http
  traffic: {input_tokens: 8, output_tokens: 4}
  load: [{concurrency: 1}, {concurrency: 2}]
search_space:
  select: [max_num_seqs, max_num_batched_tokens]
  override: {max_num_seqs: [8, 16]}
objectives:
  - maximize: output_tokens_per_s
"""
TWO = """\
name: two
engine:
  - kind: vllm
    model: synthetic:tiny
  - kind: sglang
    model: synthetic:tiny
workload:
  kind: http
  traffic: {input_tokens: 8, output_tokens: 4}
  load: [{concurrency: 1}]
search_space:
  select: [max_concurrent_sequences]
  engines:
    vllm: {override: {max_num_seqs: [8, 16]}}
objectives:
  - maximize: output_tokens_per_s
"""
TRAINING = """\
name: training
engine:
  kind: trl
  model: synthetic:learner-tiny
  fixed: {}
workload:
  kind: training
  steps: 10
search_space:
  include: trl_grpo
objectives:
  - maximize: sps
"""
TRAFFIC, LOAD, MODEL = "{input_tokens: 8, output_tokens: 4}", "[{concurrency: 1}, {concurrency: 2}]", "synthetic:tiny"
SELECT, CHANGE = "[max_num_seqs, max_num_batched_tokens]", "{max_num_seqs: [8, 16]}"
GOAL, TRIED = "- maximize: output_tokens_per_s", "first_trials[0].max_concurrent_sequences"
NEUTRAL = "Did you mean 'max_concurrent_sequences'?"
HERE = "search_space.engines.vllm"
LENGTH, ONE, TWICE = "workload.traffic.output_tokens", "search_space.select[0]", "stands twice in this list, as 'max_num_seqs'"
CLIMB = '[{slo_climb: {constraints: ["ttft_ms.p9 <= 3"], start: 1}}]'

OFFLINE = [
    (SERVING, MODEL, "synthetic:tinny", 4, "engine.model", "Did you mean 'synthetic:tiny'?"),
    (SERVING, MODEL, "/nowhere/model", 4, "engine.model", "There is no model folder /nowhere/model."),
    (SERVING, MODEL, "''", 4, "engine.model", "This is empty"),
    (SERVING, "  model: synthetic:tiny\n", "", 2, "engine.model", "'model' is missing"),
    (SERVING, "fixed: {max_model_len: 1024}", "python: /nowhere/python", 5, "engine.python", "There is no Python interpreter"),
    (SERVING, "kind: http", "kind: training", 7, "workload.kind", "cannot be measured by the workload 'training'. Allowed: "),
    (SERVING, "output_tokens: 4", "output_token: 4", 8, "workload.traffic.output_token", "Did you mean 'output_tokens'?"),
    (SERVING, "output_tokens: 4", "output_tokens: -4", 8, LENGTH, "This must be above 0. Found -4."),
    (SERVING, "output_tokens: 4", "output_tokens: {uniform: [5, 2]}", 8, LENGTH, "5 is above 2"),
    (SERVING, "output_tokens: 4", "output_tokens: {unifrm: [2, 5]}", 8, f"{LENGTH}.unifrm", "Did you mean 'uniform'?"),
    (SERVING, TRAFFIC, "{dataset: /nowhere.jsonl}", 8, "workload.traffic.dataset", "/nowhere.jsonl cannot be read"),
    (SERVING, TRAFFIC, "{trace: /nowhere.jsonl}", 8, "workload.traffic.trace", "/nowhere.jsonl cannot be read"),
    (SERVING, TRAFFIC, "{input_tokens: 8, output_tokens: 1020}", 5, "engine.fixed.max_model_len", "up to 1028 tokens. Found 1024."),
    (SERVING, "{input_tokens: 8,", "{shared_prefix: {tokens: 1024}, input_tokens: 8,", 5, "engine.fixed.max_model_len", "100%"),
    (SERVING, LOAD, "[]", 9, "workload.load", "At least one entry"),
    (SERVING, LOAD, "[{concurrency: 1}, {concurrency: 1}]", 9, "workload.load[1]", "stands twice"),
    (SERVING, LOAD, "[{concurrency: 1, request_rate: 2}]", 9, "workload.load[0]", "eeds exactly one of request_rate, concurrency"),
    (SERVING, LOAD, "[{replay: 2}]", 9, "workload.load[0].replay", "needs a trace"),
    (SERVING, LOAD, CLIMB, 9, "workload.load[0].slo_climb.constraints", "ttft_ms.p99"),
    (SERVING, LOAD, f"{LOAD}\n  preset: caht", 10, "workload.preset", "Did you mean 'chat'?"),
    (SERVING, LOAD, f"{LOAD}\n  window: {{measure_s: 0}}", 10, "workload.window.measure_s", "This must be above 0. Found 0."),
    (SERVING, "- maximize: output_tokens_per_s", "- maximize: goodput_per_s", 14, "objectives[0]", "e.g. 'goodput: {ttft_ms: 500"),
    (SERVING, "- maximize: output_tokens_per_s", "- maximize: slo_request_rate", 14, "objectives[0]", "e.g. 'load: [{slo_climb: "),
    (SERVING, SELECT, "[max_num_seqs, swap_space]", 11, "search_space.select[1]", "kv_offloading_size keeps dropped KV blocks"),
    (SERVING, SELECT, "[num_scheduler_threads]", 11, ONE, "The scheduler is one process"),
    (SERVING, SELECT, "[max_running_requests]", 11, ONE, "vLLM calls it max_num_seqs"),
    (SERVING, SELECT, "[prefix_cachng]", 11, ONE, "Did you mean 'prefix_caching'?"),
    (SERVING, SELECT, "[max_num_seqs, max_concurrent_sequences]", 11, "search_space.select[1]", TWICE),
    (TWO, "kind: sglang", "kind: vllm", 5, "engine[1]", "'vllm' stands twice"),
    (TWO, "kind: sglang", "kind: sgland", 5, "engine[1].kind", "Did you mean 'sglang'?"),
    (TWO, "    vllm: {over", "    vlm: {over", 14, "search_space.engines.vlm", "Did you mean 'vllm'?"),
    (TWO, "[max_concurrent_sequences]", "[max_num_sequences]", 12, ONE, "No engine of the study has"),
    (TWO, "override: {max_num_seqs", "override: {page_size", 14, f"{HERE}.override.page_size", "vLLM calls it block_size"),
    (TWO, "  select: [max", "  include: vllm\n  select: [max", 12, "search_space.include", "Give each engine its own"),
    (TWO, GOAL, f"{GOAL}\nfirst_trials: [{{max_num_seqs: 8, max_concurrent_sequences: 8}}]", 17, TRIED, "is set twice"),
    (TWO, GOAL, f"{GOAL}\nfirst_trials: [{{max_concurent_sequences: 8}}]", 17, "first_trials[0].max_concurent_sequences", NEUTRAL),
    (TRAINING, "synthetic:learner-tiny", "synthetic:learner-tny", 4, "engine.model", "Did you mean 'synthetic:learner-tiny'?"),
    (TRAINING, "synthetic:learner-tiny", "gpt2", 2, "engine", "needs a 'dataset'"),
    (TRAINING, "fixed: {}", "dataset: /nowhere.parquet", 5, "engine.dataset", "There is no file /nowhere.parquet."),
    (TRAINING, "fixed: {}", "script: nowhere.py", 5, "engine.script", "There is no file nowhere.py."),
    (TRAINING, "fixed: {}", "fixed: [beta]", 5, "engine.fixed", "This must be a mapping of names to values. Found a list."),
    (TRAINING, "steps: 10", "steps: 10\n  samples: 5", 6, "workload", "Give exactly one of 'steps'"),
    (TRAINING, "steps: 10", "steps: 10\n  seeds: [1, 1]", 6, "workload", "A seed stands twice"),
    (TRAINING, "maximize: sps", "minimize: ttft_ms.p99", 12, "objectives[0]", "does not measure 'ttft_ms.p99'"),
    (TRAINING, "fixed: {}", "total_steps: 9", 5, "engine.total_steps", "would end before the workload's 12 steps, warm-up"),
    (TRAINING, "steps: 10", "steps: 1000", 2, "engine.total_steps", "workload's 1002 steps, warm-up included. Found 1000."),
    (TRAINING, "fixed: {}", "fixed: {max_steps: 5}", 5, "engine.fixed.max_steps", "engine.total_steps for how many steps"),
    (TRAINING, "synthetic:learner-tiny", "gpt2\n  dataset: data/of/mine", 5, "engine.dataset", "There is no file data/of/mine."),
    (TRAINING, "maximize: sps", "maximize: rewards", 12, "objectives[0]", "Did you mean 'reward'?"),
    (TRAINING, "maximize: sps", "minimize: kl_divergence", 12, "objectives[0]", "Did you mean 'kl'?"),
    (TRAINING, "include: trl_grpo", "include: trl_grp", 10, "search_space.include", "Did you mean 'trl_grpo'?"),
    (TRAINING, "include: trl_grpo", "include: verl_ppo", 10, "search_space.include", "for the engine 'verl', not for 'trl'"),
]  # fmt: skip

AGAINST_VLLM = [
    ("{max_model_len: 1024}", "{max_modl_len: 1024}", 5, "engine.fixed.max_modl_len", "Did you mean 'max_model_len'?"),
    ("{max_model_len: 1024}", "{swap_space: 4}", 5, "engine.fixed.swap_space", "vLLM dropped swapping to main memory"),
    ("{max_model_len: 1024}", "{disable_log_stats: true}", 5, "engine.fixed.disable_log_stats", "Leave it alone"),
    ("{max_model_len: 1024}", "{port: 8000}", 5, "engine.fixed.port", "Every trial gets a free port of its own"),
    ("{max_model_len: 1024}", "{max_model_len: long}", 5, "engine.fixed.max_model_len", "must be a whole number. Found 'long'."),
    ("{max_model_len: 1024}", "{enforce_eager: maybe}", 5, "engine.fixed.enforce_eager", "is a switch. Found 'maybe'."),
    ("{max_model_len: 1024}", "{kv_cache_dtype: fp9}", 5, "engine.fixed.kv_cache_dtype", "Did you mean 'fp8'?"),
    ("{max_model_len: 1024}", "{gpu_memory_utilization: lots}", 5, "engine.fixed.gpu_memory_utilization", "must be a number"),
    (CHANGE, "{max_num_seqs: [eight]}", 12, "search_space.override.max_num_seqs[0]", "must be a whole number. Found 'eight'."),
    (CHANGE, "{max_num_seqs: 8..64}", 12, "search_space.override.max_num_seqs", "must be a whole number. Found '8..64'."),
    (CHANGE, "{scheduling_policy: [fcfs, fair]}", 12, "search_space.override.scheduling_policy[1]", "Allowed: fcfs, priority."),
    (f"override: {CHANGE}", "parameters: {made_up_flag: [1, 2]}", 12, "search_space.parameters.made_up_flag", "has no flag"),
    (GOAL, f"{GOAL}\nfirst_trials: [{{max_concurrent_sequences: lots}}]", 15, TRIED, "max_num_seqs must be a whole number. Found"),
    (f"override: {CHANGE}", 'forbid: ["max_modl_len > 3"]', 12, "search_space.forbid[0]", "Did you mean 'max_model_len'?"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_launched(monkeypatch):
    monkeypatch.setattr(process, "start", lambda *args, **kwargs: pytest.fail(f"A process was started: {args}"))


def mistakes(text, folder, confirm=False):
    path = folder / "study.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        made = plan.read(path, folder / "store")
        if confirm:
            plan.confirm(made)
    return caught.value.mistakes


@pytest.mark.parametrize("text", [SERVING, TWO, TRAINING], ids=["serving", "two", "training"])
def test_the_studies_that_are_right_are_accepted(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    assert plan.read(tmp_path / "study.yaml", tmp_path / "store").space.size() > 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("study", "old", "new", "line", "path", "says"), OFFLINE, ids=[f"{row[4]}-{row[2][:40]}" for row in OFFLINE]
)
def test_one_mistake_is_one_message_at_its_line(tmp_path, study, old, new, line, path, says):
    assert study.count(old) >= 1
    (mistake,) = mistakes(new.join(study.rsplit(old, 1)), tmp_path)
    assert (mistake.line, mistake.path) == (line, path)
    assert says in str(mistake)


def test_a_first_trial_may_use_the_names_that_engines_share(tmp_path):
    """SGLang's flag of the radix cache says the opposite of the name that all share."""
    text = TWO.replace("[max_concurrent_sequences]", "[max_concurrent_sequences, prefix_caching]") + "first_trials:\n"
    for one in ("{max_concurrent_sequences: 8}", "{engine: sglang, max_concurrent_sequences: 9, prefix_caching: false}"):
        text += f"  - {one}\n"
    (tmp_path / "study.yaml").write_text(text)
    vllm, sglang = plan.read(tmp_path / "study.yaml", tmp_path / "store").first
    assert (vllm.engine, vllm.values) == ("vllm", {"max_num_seqs": 8})
    assert (sglang.engine, sglang.values) == ("sglang", {"max_running_requests": 9, "disable_radix_cache": True})
    (mistake,) = mistakes(text.replace("prefix_caching: false", "prefix_caching: 3"), tmp_path)
    assert (mistake.line, mistake.path) == (19, "first_trials[1].prefix_caching")
    assert "'prefix_caching' is a switch, the opposite of 'disable_radix_cache'. Found 3." in str(mistake)


def test_what_an_engine_is_not_tuned_in_is_noted(tmp_path):
    """A name of one engine in a list for all is no mistake, and the other engine keeps its default."""

    def said(select, more=""):
        text = TWO.replace("[max_concurrent_sequences]", select).replace("override: {max_num_seqs: [8, 16]}", "forbid: []")
        (tmp_path / "study.yaml").write_text(text.replace("    vllm:", f"{more}    vllm:"))
        return [note for note in notes.on(plan.read(tmp_path / "study.yaml", tmp_path / "store"), 1) if "not tuned" in note]

    assert said("[stream_interval, max_num_seqs, api_server_count]") == [
        "sglang: not tuned here is what the study tunes by the names of another engine alone, 'max_num_seqs' and "
        "'api_server_count'; 'max_num_seqs' is 'max_concurrent_sequences' for both."
    ]
    assert said("[max_concurrent_sequences]") == []
    assert said("[max_num_seqs, max_running_requests]") == [], "each engine is given its own name"
    assert said("[stream_interval, max_num_seqs]", "    sglang: {override: {max_running_requests: [8, 16]}}\n") == []


def test_what_the_shell_tells_an_engine_is_noted(tmp_path):
    (tmp_path / "study.yaml").write_text(TWO)
    read = plan.read(tmp_path / "study.yaml", tmp_path / "store")
    identity = Identity(kind="vllm", version="0.26.0", python="3.12", device="NVIDIA H200", variables={"VLLM_USE_DEEP_GEMM": "0"})
    said = list(notes.on(replace(read, identities={"vllm": identity}), 1))
    told = "vllm: VLLM_USE_DEEP_GEMM=0 of this shell reaches every trial; under engine.env the study itself says so."
    assert told in said


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_what_a_trial_needs_for_itself_is_not_the_studys_to_set(kind):
    """A server that listens elsewhere would be waited for until its start has timed out."""
    assert {"port", "host"} <= set(spaces.load(kind).replaced)


def test_each_line_of_a_dataset_that_cannot_be_used_is_named(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "output_tokens": 4}\nnope\n{"prompt": "a", "output_tokens": 0}\n')
    found = mistakes(SERVING.replace(TRAFFIC, f"{{dataset: {data}}}"), tmp_path)
    assert len(found) == 2
    assert all(f"Line {number}" in str(mistake) for number, mistake in zip((2, 3), found, strict=True))


def test_a_canonical_name_selects_every_engines_own_parameter(tmp_path):
    (tmp_path / "study.yaml").write_text(TWO)
    space = plan.read(tmp_path / "study.yaml", tmp_path / "store").space
    assert list(space.engines["vllm"].parameters) == ["max_num_seqs"]
    assert list(space.engines["sglang"].parameters) == ["max_running_requests"]


def test_a_canonical_name_that_says_the_opposite_is_not_a_range(tmp_path):
    text = SERVING.replace("vllm", "sglang").replace(SELECT, "[prefix_caching]").replace(CHANGE, "{prefix_caching: [true]}")
    (mistake,) = mistakes(text.replace("max_model_len", "context_length"), tmp_path)
    assert mistake.nearest == "disable_radix_cache"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store, so that the engine is asked for its flags once."""
    before = os.environ.get("AUTOTUNE_STORE")
    os.environ["AUTOTUNE_STORE"] = str(tmp_path_factory.mktemp("store"))
    yield
    if before is None:
        del os.environ["AUTOTUNE_STORE"]
    else:
        os.environ["AUTOTUNE_STORE"] = before


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.parametrize(
    ("old", "new", "line", "path", "says"), AGAINST_VLLM, ids=[f"{row[3]}-{row[1][:40]}" for row in AGAINST_VLLM]
)
def test_the_installed_engines_flags_are_the_last_word(tmp_path, store, old, new, line, path, says):
    assert SERVING.count(old) == 1
    (mistake,) = mistakes(SERVING.replace(old, new), tmp_path, confirm=True)
    assert (mistake.line, mistake.path) == (line, path)
    assert says in str(mistake)
