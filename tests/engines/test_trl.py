"""TRL: its launches and readings from recorded files; with TRL's own environment, its own checks and real runs."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import engines, process, spaces, workloads
from autotune import models as models_room
from autotune.engines._training import Begin
from autotune.engines.base import Context
from autotune.engines.trl import read_line, reseed
from autotune.errors import MissingPrerequisite, NotFound
from autotune.evaluate import evaluate
from autotune.space import EngineSpace, Space
from autotune.trial import Configuration, FailureKind, Measured, Origin, TrialJob

DATA = Path(__file__).parent / "data"
PYTHON = Path(__file__).parents[2] / ".venvs" / "trl" / "bin" / "python"
needs_trl = pytest.mark.skipif(not PYTHON.exists(), reason="TRL has an environment of its own: make engine-trl")
SMALL = {
    "per_device_train_batch_size": 32,
    "num_generations": 4,
    "max_completion_length": 12,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
}


def make(**options):
    found = engines.get("trl")
    return found(found.Options(kind="trl", **{"model": "synthetic:learner-tiny", "cpu": True, "python": PYTHON, **options}))


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Synthetic models are made once for all tests."""
    return tmp_path_factory.mktemp("cache")


def recorded(name):
    return [read_line(json.loads(line)) for line in (DATA / name).read_text().splitlines()]


def configuration(**values):
    return Configuration(engine="trl", values=values)


def test_a_launch_is_trls_own_script_under_the_tap(context):
    launch = make(fixed=SMALL).launch(configuration(learning_rate=1e-3, **{"env.NCCL_DEBUG": "INFO"}), context)
    assert launch.argv[0] == str(PYTHON) and launch.argv[1].endswith("_trl/tap.py")
    assert launch.argv[2:] == (
        str(context.folder / "steps-0.jsonl"), "trl.scripts.grpo", "--config", str(context.folder / "trial.yaml"), "--seed", "11",
    )  # fmt: skip
    content = yaml.safe_load(launch.files["trial.yaml"])
    assert content["learning_rate"] == 1e-3 and content["num_generations"] == 4 and content["max_steps"] == 1000
    assert content["use_cpu"] is True and content["bf16"] is False
    assert content["logging_steps"] == 1 and content["logging_nan_inf_filter"] is False and content["save_strategy"] == "no"
    assert content["dataset_name"].endswith("data/prompts") and content["reward_funcs"] == ["learner_rewards.share_on_target"]
    assert "env.NCCL_DEBUG" not in content and launch.env["NCCL_DEBUG"] == "INFO" and launch.env["OMP_NUM_THREADS"] == "1"


def test_trials_that_start_together_meet_at_different_ports(context):
    launches = [make(fixed=SMALL, processes=2).launch(configuration(), context) for _ in range(2)]
    ports = [launch.env["MASTER_PORT"] for launch in launches]
    assert ports[0] != ports[1]
    assert [launch.argv[launch.argv.index("--main_process_port") + 1] for launch in launches] == ports


def test_a_configuration_cannot_silence_the_steps(context):
    launch = make(fixed={"logging_steps": 50, "max_steps": 3}).launch(configuration(), context)
    content = yaml.safe_load(launch.files["trial.yaml"])
    assert content["logging_steps"] == 1 and content["max_steps"] == 1000


def test_a_users_script_model_and_reward(context):
    engine = make(model="/models/mine", script=Path("train.py"), dataset="/data/mine", reward="mine.score", cpu=False, processes=2)
    launch = engine.launch(configuration(), context)
    assert launch.argv[1:5] == ("-m", "accelerate.commands.launch", "--num_processes", "2")
    assert str(Path("train.py").absolute()) in launch.argv
    content = yaml.safe_load(launch.files["trial.yaml"])
    assert content["model_name_or_path"] == "/models/mine" and content["dataset_name"] == "/data/mine"
    assert content["reward_funcs"] == ["mine.score"] and "use_cpu" not in content
    assert engine.gpus_needed(configuration()) == 2 and make().gpus_needed(configuration()) == 0


def test_what_lies_beside_the_study_is_found_from_a_trials_folder(context, tmp_path, monkeypatch):
    """A trial runs in a folder of its own; `load_dataset` takes a relative name that leads nowhere for a hub's."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "prompts"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    engine = make(model="model", dataset="prompts")
    assert list(engine.check()) == []
    content = yaml.safe_load(engine.launch(configuration(), context).files["trial.yaml"])
    assert content["model_name_or_path"] == str(tmp_path / "model") and content["dataset_name"] == str(tmp_path / "prompts")
    there = yaml.safe_load(make(model="org/model", dataset="org/prompts").launch(configuration(), context).files["trial.yaml"])
    assert there["model_name_or_path"] == "org/model" and there["dataset_name"] == "org/prompts"


@pytest.mark.parametrize(("name", "builder"), [("mine.jsonl", "json"), ("mine.csv", "csv"), ("mine.parquet", "parquet")])
def test_a_file_of_prompts_is_given_as_trl_reads_files(context, tmp_path, monkeypatch, name, builder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("")
    content = yaml.safe_load(make(dataset=name).launch(configuration(), context).files["trial.yaml"])
    assert content["datasets"] == [{"path": builder, "data_files": str(tmp_path / name), "split": "train"}]
    own = yaml.safe_load(make(dataset=name, script=Path("train.py")).launch(configuration(), context).files["trial.yaml"])
    assert own["dataset_name"] == str(tmp_path / name) and "datasets" not in own


def test_a_file_that_trl_cannot_read_is_a_mistake(tmp_path):
    (tmp_path / "mine.xlsx").write_text("")
    (mistake,) = make(dataset=str(tmp_path / "mine.xlsx")).check()
    assert mistake.path == "dataset" and ".jsonl" in str(mistake) and "mine.xlsx" in str(mistake)


def test_dpo_trains_on_pairs_without_a_reward(context):
    launch = make(algorithm="dpo").launch(configuration(), context)
    content = yaml.safe_load(launch.files["trial.yaml"])
    assert "trl.scripts.dpo" in launch.argv and content["dataset_name"].endswith("data/pairs") and "reward_funcs" not in content


def test_another_seed_changes_nothing_else(context):
    launch = make().launch(configuration(), context)
    assert reseed(launch, 5).argv == (*launch.argv[:-1], "5") and reseed(launch, 5).env == launch.env


def test_an_unknown_synthetic_model_names_the_nearest():
    with pytest.raises(NotFound, match="learner-tiny"):
        make(model="synthetic:learner-tny").launch(configuration(), Context(
            study="s", trial=0, tag="t", folder=Path("f"), scratch=Path("x"), cache=Path("c")))  # fmt: skip


def test_what_a_run_does_not_report_is_known_before_it():
    assert "beta is 0" in make().unreported({"beta": 0.0})["kl"] and "kl" not in make().unreported({"beta": 0.04})
    assert "preference_accuracy" in make().unreported({"beta": 0.04})
    dpo = make(algorithm="dpo").unreported({"beta": 0.1})
    recorded_dpo = next(step for step in recorded("trl_dpo_steps.jsonl") if not isinstance(step, Begin))
    assert "reward" in dpo and not dpo.keys() & recorded_dpo.metrics.keys()
    grpo = make().unreported({"beta": 0.04})
    assert not grpo.keys() & recorded("trl_grpo_steps.jsonl")[1].metrics.keys()
    assert make(script=Path("train.py")).unreported({"beta": 0.0}) == {}


def test_recorded_grpo_steps_are_read():
    begin, first, *rest = recorded("trl_grpo_steps.jsonl")
    assert isinstance(begin, Begin) and begin.versions["trl"] == "1.16.0" and begin.effective["num_generations"] == 8
    assert [step.number for step in (first, *rest)] == [1, 2, 3, 4, 5]
    assert first.samples == first.fresh_samples == 64 and first.broken == ()
    metrics = first.metrics
    assert metrics["sps"] == pytest.approx(64 / metrics["step_s"])
    assert {"reward", "reward_std", "kl", "loss", "entropy", "grad_norm", "validity_rate", "zero_std_ratio"} <= set(metrics)
    parts = metrics["generate_s"] + metrics["log_prob_s"] + metrics["reward_s"] + metrics["update_s"]
    assert parts <= metrics["step_s"], "phases are parts of the step"
    assert "preference_accuracy" not in metrics and "trainer_memory_gib" not in metrics


def test_recorded_dpo_steps_have_no_reward_and_no_phases():
    first = next(step for step in recorded("trl_dpo_steps.jsonl") if not isinstance(step, Begin))
    assert {"preference_accuracy", "preference_margin", "loss", "sps"} <= set(first.metrics)
    assert not {"reward", "generate_s", "update_s", "fresh_sps", "kl"} & set(first.metrics) and first.fresh_samples is None


def test_a_number_that_is_not_finite_is_broken_not_zero():
    line = json.loads((DATA / "trl_grpo_steps.jsonl").read_text().splitlines()[1])
    line["logs"].pop("loss")
    line["broken"] = ["loss", "completions/mean_terminated_length"]
    step = read_line(line)
    assert step.broken == ("loss",) and "loss" not in step.metrics


@pytest.fixture(scope="module")
def space():
    file = spaces.load("trl_grpo")
    tuned = {name: parameter for name, parameter in file.parameters.items() if parameter.tuned}
    return Space([EngineSpace(engine="trl", parameters=tuned, forbid=file.forbid, replaced=file.replaced, fixed={"use_cpu": True})])


@given(data=st.data())
@settings(max_examples=200)
def test_no_point_of_the_space_breaks_trls_arithmetic(space, data):
    """The rule of GRPOConfig: generation batches hold whole groups."""

    def choose(name, distribution):
        if hasattr(distribution, "values"):
            return data.draw(st.sampled_from(distribution.values))
        if isinstance(distribution.low, int):
            return data.draw(st.integers(distribution.low, distribution.high))
        return data.draw(st.floats(distribution.low, distribution.high))

    found = space.decode(space.suggest(choose))
    values = found.values
    generated = values["per_device_train_batch_size"] * values["steps_per_generation"]
    assert (space.forbidden(found) is None) == (generated % values["num_generations"] == 0)


def test_a_model_that_only_training_knows_stops_no_study():
    assert models_room.facts("synthetic:learner-tiny") is None
    with pytest.raises(NotFound):
        models_room.facts("synthetic:no-such-model")


def test_old_names_are_answered():
    replaced = spaces.load("trl_grpo").replaced
    assert {"max_prompt_length", "kl_coef", "warmup_ratio", "auto_find_batch_size"} <= set(replaced)


def test_an_interpreter_without_trl_is_a_missing_prerequisite():
    import sys

    with pytest.raises(MissingPrerequisite, match="make engine-trl"):
        make(python=Path(sys.executable)).identity()


@needs_trl
@pytest.mark.engine
def test_every_parameter_of_the_space_is_trls_own():
    flags = make().flags()
    file = spaces.load("trl_grpo")
    assert [name for name in file.parameters if name not in flags] == []
    assert (
        flags["beta"].type == "float" and flags["gradient_checkpointing"].type == "bool" and flags["learning_rate"].default == 1e-6
    )


@needs_trl
@pytest.mark.engine
def test_trl_itself_agrees_with_the_spaces_rules():
    sizes = [(micro, accumulation, group) for micro in (2, 8, 32) for accumulation in (1, 2, 4) for group in (2, 4, 8, 16)]
    file = spaces.load("trl_grpo")
    space = Space([EngineSpace(engine="trl", parameters=file.parameters, forbid=file.forbid)])
    asked = [
        Configuration(engine="trl", values={
            "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation,
            "steps_per_generation": accumulation, "num_generations": group,
        })
        for micro, accumulation, group in sizes
    ]  # fmt: skip
    verdicts = make().preflight(asked)
    assert [verdict.refused is None for verdict in verdicts] == [space.forbidden(one) is None for one in asked]
    assert any(verdict.refused for verdict in verdicts) and any(verdict.refused is None for verdict in verdicts)
    unknown = make().preflight([configuration(learning_rat=1.0)])[0]
    assert unknown.refused is not None and "learning_rate" in unknown.refused


@needs_trl
@pytest.mark.engine
def test_a_real_run_learns_and_is_measured(context, models):
    context = context.model_copy(update={"cache": models, "seed": 0})
    workload = workloads.get("training")
    engine = make(fixed=SMALL, total_steps=500)
    options = workload.Options(kind="training", steps=40, warm_up_steps=2, seeds=(0,), deadline_s=200)
    job = TrialJob(number=0, configuration=configuration(learning_rate=5e-3, beta=0.01), origin=Origin.SEARCH)
    record = evaluate(job, engine, workload(options), context, lambda label, share: None)
    assert isinstance(record.outcome, Measured), record.outcome
    measurement = record.outcome.measurement
    first, last = measurement.rows[0].metrics["reward"], measurement.totals["reward"]
    assert last > 0.3 > first and measurement.totals["reward_slope"] > 0
    assert measurement.totals["sps"] > 10 and measurement.totals["kl"] > 0 and measurement.totals["peak_memory_gib"] > 0.2
    assert record.effective["learning_rate"] == 5e-3 and record.effective["generation_batch_size"] == 32
    assert process.tagged(context.tag) == []


@needs_trl
@pytest.mark.engine
def test_a_text_that_is_no_number_is_refused_and_one_that_is_passes():
    """TRL's classes take any text for a number, and a trial crashes on it."""
    values = ({"beta": "0.04x"}, {"num_iterations": "2.5"}, {"beta": "4e-2", "num_iterations": "2", "loss_type": "grpo"})
    refusals = [verdict.refused for verdict in make(fixed=SMALL).preflight([configuration(**one) for one in values])]
    assert refusals == ["beta must be a number, not '0.04x'.", "num_iterations must be a number, not '2.5'.", None]


@needs_trl
@pytest.mark.engine
@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("my_reward.score", None),
        ("accuracy_reward", None),
        ("my_reward.scroe", "no function 'scroe'. Did you mean 'score'?"),
        ("no_such_module.score", "No module named 'no_such_module'"),
        ("my_reward.py:score", "not of the form module.function"),
        ("score", "accuracy_reward"),
        ("needs_a_gpu.score", None),
        ("reads_the_study.score", None),
        ("leaves.score", "SystemExit: 3"),
        ("unfinished.score", "SyntaxError"),
    ],
)
def test_a_reward_is_looked_for_before_a_trial_is_spent(tmp_path, monkeypatch, reward, words):
    (tmp_path / "my_reward.py").write_text("print('loaded')\ndef score(completions, **_): ...\n")
    modules = {
        "needs_a_gpu": "raise RuntimeError('No CUDA GPUs are available')",
        "reads_the_study": "import os\nif 'JUDGE' not in os.environ: raise ImportError\ndef score(**_): ...",
        "leaves": "raise SystemExit(3)",
        "unfinished": "def score(:",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    (verdict,) = make(reward=reward, fixed=SMALL, env={"JUDGE": "mine"}).preflight([configuration()])
    assert verdict.refused is None if words is None else words in verdict.refused
    (verdict,) = make(reward=reward, fixed=SMALL, script=Path("train.py")).preflight([configuration()])
    assert verdict.refused is None, "what a script of the user's own does with it is not known"


@needs_trl
@pytest.mark.engine
def test_rewards_that_are_no_list_are_refused():
    (verdict,) = make(fixed={**SMALL, "reward_funcs": "accuracy_reward"}).preflight([configuration()])
    assert verdict.refused == "reward_funcs must be a list, such as [accuracy_reward]."


REWARD = """
def score(completions, log_metric=None, **_):
    log_metric("json_ok", 0.25)
    log_metric("rollout_hit_rate", 0.75)
    return [float(len(completion) % 3) for completion in completions]
"""


@needs_trl
@pytest.mark.engine
def test_a_users_reward_function_reports_validity_and_hit_rate(context, models, tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    workload = workloads.get("training")
    options = workload.Options(kind="training", steps=2, warm_up_steps=1, deadline_s=200)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "t1 t1 :"}\n' * 64)
    engine = make(reward="my_reward.score", dataset="mine.jsonl", fixed=SMALL)
    job = TrialJob(number=0, configuration=configuration(), origin=Origin.SEARCH)
    at = context.model_copy(update={"cache": models})
    record = evaluate(job, engine, workload(options), at, lambda label, share: None)
    assert isinstance(record.outcome, Measured), record.outcome
    totals = record.outcome.measurement.totals
    assert totals["validity_rate"] == 0.25 and totals["rollout_hit_rate"] == 0.75


@needs_trl
@pytest.mark.engine
def test_a_good_learning_rate_beats_the_default_by_more_than_the_seeds_differ(context, models):
    """What studies/trl_grpo_cpu.yaml promises, in two trials of two seeds."""
    workload = workloads.get("training")
    options = workload.Options(kind="training", samples=2560, warm_up_steps=2, seeds=(0, 1), deadline_s=300)
    rewards = {}
    for number, values in enumerate(({}, {"learning_rate": 3e-3})):
        place = {"cache": models, "seed": 0, "folder": context.folder / str(number), "scratch": context.scratch / str(number)}
        job = TrialJob(number=number, configuration=configuration(**values), origin=Origin.SEARCH)
        record = evaluate(job, make(fixed=SMALL), workload(options), context.model_copy(update=place), lambda label, share: None)
        assert isinstance(record.outcome, Measured), record.outcome
        rewards[number] = [totals["reward"] for totals in record.outcome.measurement.facts["seeds"].values()]
    spread = max(max(seeds) - min(seeds) for seeds in rewards.values())
    assert min(rewards[1]) - max(rewards[0]) > spread, rewards


@needs_trl
@pytest.mark.engine
def test_a_real_refusal_is_invalid_config(context, models):
    context = context.model_copy(update={"cache": models})
    workload = workloads.get("training")
    options = workload.Options(kind="training", steps=2)
    job = TrialJob(number=0, configuration=configuration(num_generations=7), origin=Origin.SEARCH)
    record = evaluate(job, make(fixed={**SMALL, "num_generations": 4}), workload(options), context, lambda label, share: None)
    assert record.outcome.kind is FailureKind.INVALID_CONFIG and "divisible by num_generations (7)" in record.outcome.evidence[0]


@needs_trl
@pytest.mark.engine
@pytest.mark.parametrize("algorithm", ["dpo", "rloo"])
def test_other_algorithms_train_too(context, models, algorithm):
    context = context.model_copy(update={"cache": models})
    workload = workloads.get("training")
    fixed = {"gradient_checkpointing": False} if algorithm == "dpo" else SMALL
    options = workload.Options(kind="training", steps=4, warm_up_steps=1, deadline_s=200)
    job = TrialJob(number=0, configuration=configuration(learning_rate=1e-3), origin=Origin.SEARCH)
    record = evaluate(job, make(algorithm=algorithm, fixed=fixed), workload(options), context, lambda label, share: None)
    assert isinstance(record.outcome, Measured), record.outcome
    assert ("preference_accuracy" in record.outcome.measurement.totals) == (algorithm == "dpo")
