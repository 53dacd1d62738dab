"""Every mistake a user can make in a study is one clear message with its line, before anything is launched."""

from __future__ import annotations

import pytest

from autotune import gpu, plan, preview, process
from autotune.errors import InvalidInput

STUDY = """\
name: small
about: A study that is right in every line.
engine:
  kind: recorded
  fixed: {block_size: 16}
  noise: 0.03
workload:
  kind: recorded
  traffic: chat
  load: [{request_rate: 10}, {request_rate: 30}]
search_space:
  include: recorded
  select: [max_num_seqs, max_num_batched_tokens, kv_cache_dtype]
  override: {max_num_seqs: {low: 8, high: 256}}
  forbid: ["max_num_seqs > max_num_batched_tokens"]
objectives:
  - maximize: output_tokens_per_s
  - minimize: peak_gpu_memory_gib
constraints: ["ttft_ms.p99 <= 500 @ request_rate=30"]
budget: {trials: 12, gpu_minutes: 90}
search: {sampler: tpe, seed: 1}
first_trials:
  - {max_num_seqs: 64, max_num_batched_tokens: 4096}
finalists: {count: 2, repeats: 2}
executor: {kind: local, parallel: 1}
tracking: {enabled: false, uri: null}
export: []
"""
KIND, FIXED, NOISE, TRAFFIC = "engine:\n  kind: recorded\n", "{block_size: 16}", "noise: 0.03", "traffic: chat"
LOAD, INCLUDE = "[{request_rate: 10}, {request_rate: 30}]", "include: recorded"
SELECT = "[max_num_seqs, max_num_batched_tokens, kv_cache_dtype]"
OVERRIDE, FORBID = "override: {max_num_seqs: {low: 8, high: 256}}", '["max_num_seqs > max_num_batched_tokens"]'
OBJECTIVE = "- maximize: output_tokens_per_s"
CONSTRAINT, BUDGET = '["ttft_ms.p99 <= 500 @ request_rate=30"]', "{trials: 12, gpu_minutes: 90}"
FIRST = "{max_num_seqs: 64, max_num_batched_tokens: 4096}"
SEQS, OWN, THIRD = "search_space.override.max_num_seqs", "search_space.parameters.max_num_seqs", "search_space.select[2]"
STAGES = "strategy: staged, stages: "
DERIVED = "parameters: {max_num_seqs: {kind: derived, expr: "

# What is replaced in the study, by what, the line and the path of the mistake, and what its message says.
WRONG = [
    # The file as YAML.
    ("noise: 0.03", "noise: 0.03\n  noise: 0.04", 7, "engine.noise", "'noise' stands twice"),
    (FIXED, "{block_size: 16, block_size: 32}", 5, "engine.fixed.block_size", "'block_size' stands twice"),
    (FIXED, "{block_size: 16", 6, "", "not valid YAML"),
    (FIXED, "!!python/name:os.system x", 5, "engine.fixed", "YAML tag"),
    (FIXED, "{block_size: .nan}", 5, "engine.fixed.block_size", "'.nan' is not a finite number"),
    (FIXED, "{block_size: 1e400}", 5, "engine.fixed.block_size", "'1e400' is not a finite number"),
    ("gpu_minutes: 90", "gpu_minutes: .inf", 20, "budget.gpu_minutes", "'.inf' is not a finite number"),
    # The sections and their names.
    ("name: small", "nam: small", 1, "nam", "Did you mean 'name'?"),
    ("name: small\n", "", 1, "name", "'name' is missing"),
    ("name: small", "name: Small One", 1, "name", "name is 1 to 64 of a-z"),
    ("name: small", "name: ../up", 1, "name", "name is 1 to 64 of a-z"),
    ("name: small", "name: 5", 1, "name", "This must be a text. Found 5."),
    ("name: small", "name:", 1, "name", "This must be a text. Found nothing."),
    ("objectives:", "objective:", 16, "objective", "Did you mean 'objectives'?"),
    ("budget: {trials: 12, gpu_minutes: 90}", "budget:", 20, "budget", "This must be a mapping"),
    ("tracking: {enabled: false, uri: null}", "reuse: maybe", 26, "reuse", "This must be true or false. Found 'maybe'."),
    # Engine.
    (KIND, "engine:\n  kind: RECORDED\n", 4, "engine.kind", "Did you mean 'recorded'?"),
    (KIND, "engine:\n", 3, "engine", "needs a 'kind'"),
    (KIND, "engine:\n  kind: recordd\n", 4, "engine.kind", "Did you mean 'recorded'?"),
    (KIND, "engine:\n  kind: [recorded]\n", 4, "engine.kind", "There is no engine"),
    (NOISE, "nois: 0.03", 6, "engine.nois", "Did you mean 'noise'?"),
    (NOISE, "noise: lots", 6, "engine.noise", "This must be a number. Found 'lots'."),
    (NOISE, "noise: 5", 6, "engine.noise", "This must be at most 0.5. Found 5."),
    (NOISE, "start_timeout_s: -1", 6, "engine.start_timeout_s", "This must be above 0. Found -1."),
    (NOISE, "data: vllm-0.26.0-llama8", 6, "engine.data", "Did you mean 'vllm-0.26.0-llama8b'?"),
    (NOISE, "python: /nowhere/bin/python", 6, "engine.python", "There is no Python interpreter /nowhere/bin/python."),
    (NOISE, "env: {A: 1}", 6, "engine.env.A", "This must be a text. Found 1."),
    (NOISE, "faults: {crash: 0.1}", 6, "engine.faults.crash", "Did you mean 'crashed'?"),
    (FIXED, "[block_size]", 5, "engine.fixed", "This must be a mapping of names to values. Found a list."),
    (FIXED, "{block_sze: 16}", 5, "engine.fixed.block_sze", "Did you mean 'block_size'?"),
    (FIXED, "{block_size: big}", 5, "engine.fixed.block_size", "must be a whole number. Found 'big'."),
    (FIXED, "{block_size: 16.5}", 5, "engine.fixed.block_size", "must be a whole number. Found 16.5."),
    (FIXED, "{block_size: 4096}", 5, "engine.fixed.block_size", "Found 4096. Allowed: 16 to 128."),
    (FIXED, "{block_size: 16, enforce_eager: 1}", 5, "engine.fixed.enforce_eager", "is a switch. Found 1. Allowed: true, false."),
    # Workload.
    ("workload:\n  kind: recorded\n", "workload:\n", 7, "workload", "needs a 'kind'"),
    ("workload:\n  kind: recorded", "workload:\n  kind: htp", 8, "workload.kind", "Did you mean 'http'?"),
    ("workload:\n  kind: recorded", "workload:\n  kind: http", 8, "workload.kind", "cannot be measured by the workload 'http'"),
    (TRAFFIC, "trafic: chat", 9, "workload.trafic", "Did you mean 'traffic'?"),
    (TRAFFIC, "traffic: chats", 9, "workload.traffic", "Did you mean 'chat'?"),
    (LOAD, "[{request_rat: 10}, {request_rate: 30}]", 10, "workload.load[0].request_rat", "Did you mean 'request_rate'?"),
    (LOAD, "[{request_rate: 11}, {request_rate: 30}]", 10, "workload.load[0]", "has no load level request_rate: 11"),
    (LOAD, "[{request_rate: 30}, {request_rate: 30}]", 10, "workload.load[1]", "stands twice"),
    (LOAD, "{request_rate: 10}", 10, "workload.load", "This must be a list"),
    # Search space: what is included and selected.
    (INCLUDE, "include: recorde", 12, "search_space.include", "Did you mean 'recorded'?"),
    (INCLUDE, "include: nowhere.yaml", 12, "search_space.include", "The file nowhere.yaml cannot be read"),
    (INCLUDE, "include: sglang", 12, "search_space.include", "for the engine 'sglang', not for 'recorded'"),
    (INCLUDE, "include: ''", 12, "search_space.include", "There is no search space ''"),
    (INCLUDE, "include: 7", 12, "search_space.include", "This must be a text. Found 7."),
    (SELECT, "[max_num_seqs, max_num_batched_tokens, kv_cach_dtype]", 13, THIRD, "Did you mean 'kv_cache_dtype'?"),
    (SELECT, "[max_num_seqs, max_num_batched_tokens, max_num_seqs]", 13, THIRD, "stands twice"),
    (SELECT, "[max_num_seqs, max_num_batched_tokens, block_size]", 13, THIRD, "fixed by the engine section and tuned"),
    (SELECT, "[]", 13, "search_space.select", "At least one entry is needed"),
    (SELECT, "max_num_seqs", 13, "search_space.select", "This must be a list"),
    # Search space: what is overridden and defined.
    (OVERRIDE, "override: {max_num_sqs: [8, 16]}", 14, "search_space.override.max_num_sqs", "Did you mean 'max_num_seqs'?"),
    (OVERRIDE, "override: {block_size: [16, 32]}", 14, "search_space.override.block_size", "fixed by the engine section and tuned"),
    (OVERRIDE, "override: {max_num_seqs: {lo: 8}}", 14, f"{SEQS}.lo", "Did you mean 'low'?"),
    (OVERRIDE, "override: {max_num_seqs: {low: 256, high: 8}}", 14, SEQS, "is above high"),
    (OVERRIDE, "override: {max_num_seqs: {low: 9}}", 14, f"{SEQS}.low", "9 is not a power of two"),
    (OVERRIDE, "override: {max_num_seqs: []}", 14, SEQS, "At least one entry"),
    (OVERRIDE, "override: {max_num_seqs: [64, 64]}", 14, SEQS, "A value stands twice"),
    (OVERRIDE, "override: {max_num_seqs: [64, 4096]}", 14, f"{SEQS}[1]", "Allowed: 8 to 1024."),
    (OVERRIDE, "override: {max_num_seqs: {low: 8, high: 4096}}", 14, f"{SEQS}.high", "Found 4096."),
    (OVERRIDE, "override: {max_num_seqs: {low: 8, high: 1.0e+30}}", 14, f"{SEQS}.high", "fits into"),
    (OVERRIDE, "override: {max_num_seqs: banana}", 14, SEQS, "must be a whole number"),
    (OVERRIDE, "override: {kv_cache_dtype: [auto, fp9]}", 14, "search_space.override.kv_cache_dtype[1]", "Did you mean 'fp8'?"),
    (OVERRIDE, "override: {max_num_seqs: {kind: integer, low: 1}}", 14, f"{SEQS}.kind", "Did you mean 'int'?"),
    (OVERRIDE, "override: [max_num_seqs]", 14, "search_space.override", "This must be a mapping"),
    (OVERRIDE, "parameters: {made_up: [1, 2]}", 14, "search_space.parameters.made_up", "has no flag for 'made_up'"),
    (OVERRIDE, "parameters: {made_up: {low: 1}}", 14, "search_space.parameters.made_up", "A parameter is a list of values"),
    (
        OVERRIDE, "parameters: {p: {kind: tuple, members: [max_num_seqs, max_num_batched_tokens], values: [[1]]}}",
        14, "search_space.parameters.p", "has 1 values for the 2 members",
    ),
    (
        OVERRIDE, "parameters: {p: {kind: tuple, members: [max_num_seqs, enforce_eager], values: [[8, true]]}}",
        14, "search_space.parameters.p", "'max_num_seqs' is set by two parameters, 'max_num_seqs' and 'p'",
    ),
    (OVERRIDE, f"override: {{max_num_seqs: {{kind: int, low: 8, high: {10**20}}}}}", 14, f"{SEQS}.high", "This must be at most"),
    ("  override:", "  overide:", 14, "search_space.overide", "Did you mean 'override'?"),
    (OVERRIDE, "engines: {vllm: {select: [max_num_seqs]}}", 14, "search_space.engines.vllm", "The study has no engine 'vllm'"),
    (OVERRIDE, "engines: {recorded: {selct: [max_num_seqs]}}", 14, "search_space.engines.recorded.selct", "Did you mean 'select'?"),
    # Search space: conditions, derived values and rules.
    (OVERRIDE, DERIVED + '"max_num_btched_tokens // 2"}}', 14, f"{OWN}.expr", "Did you mean 'max_num_b"),
    (OVERRIDE, DERIVED + '"1 +"}}', 14, f"{OWN}.expr", "found the end at character"),
    (OVERRIDE, DERIVED + '"max_num_seqs + 1"}}', 14, OWN, "in a circle: max_num_seqs → max_num_seqs"),
    (
        OVERRIDE, DERIVED + '"kv_cache_dtype"}, kv_cache_dtype: {values: [auto, fp8], when: "max_num_seqs > 8"}}',
        14, OWN, "in a circle: max_num_seqs → kv_cache_dtype → max_num_seqs",
    ),
    (
        OVERRIDE, 'override: {max_num_seqs: {low: 8, high: 64, when: "kv_cache_dtyp in [auto]"}}',
        14, f"{SEQS}.when", "Did you mean 'kv_cache_dtype'?",
    ),
    (
        OVERRIDE, 'override: {max_num_seqs: {low: 8, high: 64, when: "kv_cache_dtype = 1"}}',
        14, f"{SEQS}.when", "unexpected '='",
    ),
    (FORBID, '["max_num_sqs > 4"]', 15, "search_space.forbid[0]", "Did you mean 'max_num_seqs'?"),
    (FORBID, '["max_num_seqs >"]', 15, "search_space.forbid[0]", "found the end"),
    (FORBID, '["__import__(1)"]', 15, "search_space.forbid[0]", "found '('"),
    (FORBID, '[{rule: "max_num_seqs > 4"}]', 15, "search_space.forbid[0].reason", "'reason' is missing"),
    (FORBID, '[{rule: "max_num_seqs > 4", reson: x}]', 15, "search_space.forbid[0].reson", "Did you mean 'reason'?"),
    (FORBID, '"max_num_seqs > 4"', 15, "search_space.forbid", "This must be a list"),
    (FORBID, "[\"kv_cache_dtype != 'fp4'\"]", 15, "search_space.forbid", "forbid all of 300 random configurations"),
    ("seed: 1", "stages: [[max_num_seqs]]", 21, "search.stages", "a joint search has none"),
    (FORBID, "[7]", 15, "search_space.forbid[0]", "This must be a mapping"),
    (FORBID, '["max_num_seqs >= 1"]', 23, "first_trials[0]", "forbidden (max_num_seqs >= 1)"),
    # Goals.
    (OBJECTIVE, "- maximise: output_tokens_per_s", 17, "objectives[0].maximise", "Did you mean 'maximize'?"),
    (OBJECTIVE, "- maximize: output_token_per_s", 17, "objectives[0]", "Did you mean 'output_tokens_per_s'?"),
    (OBJECTIVE, "- maximize: throughput", 17, "objectives[0]", "Allowed: ttft_ms.*, tpot_ms.*"),
    (OBJECTIVE, "- maximize: ttft_ms", 17, "objectives[0]", "needs one of the statistics"),
    (OBJECTIVE, "- minimize: ttft_ms.p98", 17, "objectives[0]", "Allowed: ttft_ms.mean, ttft_ms.p50"),
    (OBJECTIVE, "- maximize: reward", 17, "objectives[0]", "does not measure 'reward'"),
    (OBJECTIVE, "- minimize: ttft_ms.mean", 17, "objectives[0]", "does not measure 'ttft_ms.mean'"),
    (OBJECTIVE, "- output_tokens_per_s", 17, "objectives[0]", "'maximize: METRIC' or 'minimize: METRIC'"),
    (OBJECTIVE, "- maximize: [sps]", 17, "objectives[0].maximize", "must be a name"),
    (OBJECTIVE, "- minimize: peak_gpu_memory_gib", 18, "objectives[1]", "stands twice"),
    (OBJECTIVE, "- maximize: sps @ request_rate=99", 17, "objectives[0]", "has no load level request_rate=99"),
    (OBJECTIVE, "- maximize: sps @ requestrate=30", 17, "objectives[0]", "Did you mean 'request_rate=30'?"),
    (f"{OBJECTIVE}\n  - minimize: peak_gpu_memory_gib", "[]", 16, "objectives", "At least one entry"),
    (CONSTRAINT, '["ttft_ms.p99 < 500"]', 19, "constraints[0]", "is not of the form"),
    (CONSTRAINT, '["ttft_ms.p99 <= fast"]', 19, "constraints[0]", "is not of the form"),
    (CONSTRAINT, '["ttft_ms.p99 <= 0"]', 19, "constraints[0]", "cannot be scaled"),
    (CONSTRAINT, '["ttft_ms.p99 <= 1e999"]', 19, "constraints[0]", "not a finite number"),
    (CONSTRAINT, '["ttft_ms.p99 <= -5"]', 19, "constraints[0]", "No trial can keep 'ttft_ms.p99 <= -5': ttft_ms is never below 0."),
    (CONSTRAINT, '["sps <= -1 @ request_rate=30"]', 19, "constraints[0]", "sps is never below 0."),
    (CONSTRAINT, '["kv_cache_usage >= 95"]', 19, "constraints[0]", "kv_cache_usage is never above 1."),
    (CONSTRAINT, '["tfft_ms.p99 <= 500"]', 19, "constraints[0]", "Did you mean 'ttft_ms.p99'?"),
    (CONSTRAINT, '["ttft_ms.p99 <= 500 @ request_rate=31"]', 19, "constraints[0]", "has no load level request_rate=31"),
    (CONSTRAINT, '["sps <= 3", "sps >= 4"]', 19, "constraints[1]", "No trial can keep 'sps >= 4' and 'sps <= 3'."),
    (CONSTRAINT, '["sps >= 1", "sps >= 1"]', 19, "constraints[1]", "stands twice"),
    (CONSTRAINT, '"sps >= 1"', 19, "constraints", "This must be a list"),
    (CONSTRAINT, "[{sps: 1}]", 19, "constraints[0]", "A constraint is a text such as"),
    # Budget, search, finalists.
    (BUDGET, "{trials: -3}", 20, "budget.trials", "This must be at least 1. Found -3."),
    (BUDGET, "{trials: 1e9}", 20, "budget.trials", "This must be at most 100000."),
    (BUDGET, "{trials: 12.5}", 20, "budget.trials", "This must be a whole number. Found 12.5."),
    (BUDGET, "{gpu_minutes: -1}", 20, "budget.gpu_minutes", "This must be above 0. Found -1."),
    (BUDGET, "{gpu_minute: 5}", 20, "budget.gpu_minute", "Did you mean 'gpu_minutes'?"),
    ("sampler: tpe", "sampler: tppe", 21, "search.sampler", "Did you mean 'tpe'?"),
    ("sampler: tpe", "sampler: nowhere.module:Class", 21, "search.sampler", "cannot be imported"),
    ("sampler: tpe", "sampler: pathlib:Path", 21, "search.sampler", "not a subclass"),
    ("seed: 1", "options: {n_startup: 3}", 21, "search.options", "does not take these options"),
    ("sampler: tpe", "sampler: nsga2, options: {population_size: 1}", 21, "search.options", "does not take these options"),
    ("seed: 1", "seed: -1", 21, "search.seed", "This must be at least 0. Found -1."),
    ("sampler: tpe", "sampler: 'optuna.samplers:CmaEsSampler'", 21, "search.sampler", "CmaEsSampler cannot be used"),
    ("seed: 1", "options: {n_ei_candidates: many}", 21, "search.options", "TPESampler cannot search this study: ValueError"),
    ("seed: 1", STAGES + "[[max_num_sqs]]", 21, "search.stages[0][0]", "Did you mean 'max_num_seqs'?"),
    ("seed: 1", STAGES + "[[block_size]]", 21, "search.stages[0][0]", "not a parameter that this study's search chooses"),
    ("seed: 1", STAGES + "[[max_num_seqs], [max_num_seqs]]", 21, "search.stages[1][0]", "stands in the stages twice"),
    ("seed: 1", "strategy: jont", 21, "search.strategy", "Allowed: joint, staged. Did you mean 'joint'?"),
    ("count: 2, repeats: 2", "count: -1", 24, "finalists.count", "This must be at least 0. Found -1."),
    ("count: 2, repeats: 2", "repeats: 1", 24, "finalists.repeats", "This must be at least 2. Found 1."),
    # First trials.
    (FIRST, "{max_num_sqs: 64}", 23, "first_trials[0].max_num_sqs", "Did you mean 'max_num_seqs'?"),
    (FIRST, "{block_size: 32}", 23, "first_trials[0].block_size", "is fixed by the engine section"),
    (FIRST, "{max_num_seqs: 256, max_num_batched_tokens: 128}", 23, "first_trials[0]", "This configuration is forbidden"),
    (FIRST, "{max_num_seqs: lots}", 23, "first_trials[0].max_num_seqs", "must be a whole number. Found 'lots'."),
    (FIRST, "{kv_cache_dtype: fp9}", 23, "first_trials[0].kv_cache_dtype", "Did you mean 'fp8'?"),
    (FIRST, "{engine: vllm, max_num_seqs: 8}", 23, "first_trials[0].engine", "The study has no engine 'vllm'"),
    (FIRST, "{max_num_seqs: 8k, max_num_batched_tokens: 512}", 23, "first_trials[0]", "outside what was recorded"),
    (FIRST, "{}", 23, "first_trials[0]", "default configuration"),
    (FORBID, "[\"kv_cache_dtype == 'auto'\"]", 23, "first_trials[0]", "leaves kv_cache_dtype at 'auto', which is forbidden"),
    (FIRST, "[max_num_seqs]", 23, "first_trials[0]", "This must be a mapping"),
    # Executor, tracking, export.
    ("kind: local", "kind: locl", 25, "executor.kind", "Did you mean 'local'?"),
    ("parallel: 1", "parallel: 0", 25, "executor.parallel", "This must be at least 1, or 'auto'. Found 0."),
    ("parallel: 1", "parallel: some", 25, "executor.parallel", "This must be a whole number, or 'auto'. Found 'some'."),
    ("parallel: 1", "address: ray://head", 25, "executor.address", "need no address"),
    ("uri: null", "uri: 5", 26, "tracking.uri", "This must be a text. Found 5."),
    ("uri: null", "uri: mlruns", 26, "tracking.uri", "is named by its address"),
    ("uri: null", "uri: 'htp://host'", 26, "tracking.uri", "Did you mean 'http'?"),
    ("uri: null", "uri: 'http://host:port'", 26, "tracking.uri", "This is not an address"),
    ("uri: null", "uri: 'http://:5000'", 26, "tracking.uri", "names no host"),
    ("export: []", "export: [kubernets]", 27, "export[0]", "There is no exporter 'kubernets'"),
    ("export: []", "export: [sglang_yaml]", 27, "export[0]", "renders sglang, not recorded"),
    ("export: []", "export: shell", 27, "export", "This must be a list"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_launched(monkeypatch):
    def start(*args, **kwargs):
        pytest.fail(f"A process was started for a study that is wrong: {args}")

    monkeypatch.setattr(process, "start", start)


def checked(text, folder):
    """The mistakes of a study, as `autotune check` finds them."""
    path = folder / "study.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        plan.confirm(plan.read(path, folder / "store"))
    return caught.value.mistakes


def test_the_study_that_is_right_is_accepted(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    made = plan.confirm(plan.read(path, tmp_path / "store"))
    assert made.first[0].values["max_num_seqs"] == 64
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("old", "new", "line", "path", "says"), WRONG, ids=[f"{row[3]}-{row[1][:40]}" for row in WRONG])
def test_one_mistake_is_one_message_at_its_line(tmp_path, old, new, line, path, says):
    assert STUDY.count(old) == 1
    (mistake,) = checked(STUDY.replace(old, new), tmp_path)
    assert (mistake.line, mistake.path) == (line, path)
    assert mistake.file == str(tmp_path / "study.yaml")
    assert says in str(mistake)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "5", "~"])
def test_a_file_that_is_no_study_at_all(tmp_path, text):
    (mistake,) = checked(text, tmp_path)
    assert "This must be a mapping of names to values." in str(mistake)


def test_several_mistakes_come_together_and_in_order(tmp_path):
    text = STUDY
    for old, new in ((TRAFFIC, "traffic: chats"), ("kv_cache_dtype]", "kv_cach_dtype]"), ("kind: local", "kind: locl")):
        text = text.replace(old, new)
    assert [mistake.line for mistake in checked(text, tmp_path)] == [9, 13, 25]


@pytest.mark.parametrize("uri", ["ftp://tuner:hunter2@host/x", "ftp://host/?token=hunter2", "sqlite+x://me:hunter2@/x:y"])
def test_credentials_in_an_address_are_masked(tmp_path, uri):
    mistakes = checked(STUDY.replace("uri: null", f"uri: {uri!r}, typo: 1"), tmp_path)
    assert "hunter2" not in str(mistakes)
    mistakes = checked(STUDY.replace("uri: null", f"uri: {uri.replace('sqlite', 'sqlit')!r}"), tmp_path)
    assert "hunter2" not in str(mistakes)


def test_a_mistake_in_a_space_file_of_ones_own_points_there(tmp_path):
    space = tmp_path / "own.yaml"
    space.write_text("engine: recorded\nparameters:\n  max_num_seqs: {kind: int, low: 8, high: many}\n")
    (mistake,) = checked(STUDY.replace(INCLUDE, f"include: {space}"), tmp_path)
    assert (mistake.file, mistake.line, mistake.path) == (str(space), 3, "parameters.max_num_seqs.high")


@pytest.mark.parametrize("number", ["1e-5", "1E+3", ".5e3", "2e4"])
def test_scientific_numbers_are_numbers(tmp_path, number):
    (mistake,) = checked(STUDY.replace(FIXED, f"{{block_size: {number}}}"), tmp_path)
    assert f"Found {float(number)!r}" in str(mistake)


@pytest.mark.parametrize(
    "bounds",
    ['["sps >= 3", "sps <= 4"]', '["sps <= 3 @ request_rate=10", "sps >= 4 @ request_rate=30"]', '["sps >= 3", "sps <= 3"]'],
)
def test_bounds_that_leave_a_band_or_are_of_different_levels_go_together(tmp_path, bounds):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace(CONSTRAINT, bounds))
    assert len(plan.read(path, tmp_path / "store").study.constraints) == 2


@pytest.mark.parametrize(
    ("old", "new", "noted"),
    [
        (OBJECTIVE, "- minimize: output_tokens_per_s", "output_tokens_per_s: higher is better"),
        ("p99 <= 500", "p99 >= 500", "ttft_ms.p99 >= 500 @ request_rate=30: lower is better"),
        (OBJECTIVE, OBJECTIVE, None),
    ],
)
def test_a_goal_the_wrong_way_round_is_noted(tmp_path, old, new, noted):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace(old, new))
    warnings = preview.preview(plan.read(path, tmp_path / "store")).warnings
    assert any("asks for the opposite" in warning for warning in warnings) == (noted is not None)
    assert noted is None or any(warning.startswith(noted) for warning in warnings)


@pytest.mark.parametrize(
    ("old", "new", "noted"),
    [
        (
            FORBID,
            '["max_num_seqs > 128 or max_num_seqs > max_num_batched_tokens"]',
            "holds of the default, measured all the same as the baseline; it cannot win",
        ),
        (FORBID, '["enforce_eager == true"]', "reads nothing that this study tunes, so it forbids nothing"),
        ("kind: local, parallel: 1", "parallel: 3", "executor.parallel: 3 has no effect: the executor 'inline' runs trials one"),
        ("trials: 12", "trials: 1", "2 trials are named, the defaults among them, and 1 are the budget"),
    ],
)
def test_what_will_not_be_as_it_seems_is_noted(tmp_path, old, new, noted):
    def notes(text):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return " ".join(preview.preview(plan.confirm(plan.read(path, tmp_path / "store"))).warnings)

    assert noted in notes(STUDY.replace(old, new)) and noted not in notes(STUDY)


@pytest.mark.parametrize(
    ("executor", "gpus", "at_once", "noted"),
    [
        ("kind: auto, parallel: 3", 0, 1, True),
        ("kind: inline, parallel: 3", 0, 1, True),
        ("kind: local, parallel: 3", 0, 3, False),
        ("kind: local, parallel: 3", 1, 2, True),
        ("kind: local, parallel: auto", 1, 2, False),
        ("kind: ray, parallel: 3", 1, 3, False),
    ],
)
def test_the_check_counts_trials_at_once_as_they_will_run(tmp_path, monkeypatch, executor, gpus, at_once, noted):
    cards = tuple(gpu.Device(index=index, uuid=f"GPU-{index}", name="card", total_bytes=1 << 30) for index in range(2))
    monkeypatch.setattr(gpu, "devices", lambda: cards)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace(NOISE, f"gpus: {gpus}").replace("kind: local, parallel: 1", executor))
    shown = preview.preview(plan.read(path, tmp_path / "store"))
    assert shown.expected.at_once == at_once
    assert any("executor.parallel" in warning for warning in shown.warnings) == noted


def test_more_gpus_than_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "devices", lambda: (gpu.Device(index=0, uuid="GPU-0", name="card", total_bytes=1 << 30),))
    (mistake,) = checked(STUDY.replace(NOISE, "gpus: 2"), tmp_path)
    assert (mistake.line, mistake.path) == (3, "engine")
    assert "needs 2 GPUs, and this machine has 1" in str(mistake)
