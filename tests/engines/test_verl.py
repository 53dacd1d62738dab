"""verl: its launches and readings from recorded files; with verl's own environment, its own validation and a real run."""

import json
from pathlib import Path

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from autotune import engines, process, spaces, workloads
from autotune.engines._verl_hydra import A, hydra, override
from autotune.engines._verl_steps import reader, samples_per_step
from autotune.engines.verl import ray_folder, reseed
from autotune.evaluate import evaluate
from autotune.space import EngineSpace, Space
from autotune.trial import Configuration, FailureKind, Measured, Origin, TrialJob

DATA = Path(__file__).parent / "data"
PYTHON = Path(__file__).parents[2] / ".venvs" / "verl" / "bin" / "python"
needs_verl = pytest.mark.skipif(not PYTHON.exists(), reason="verl has an environment of its own: make engine-verl")
SMALL = {
    "data.train_batch_size": 8,
    "data.max_prompt_length": 16,
    "data.max_response_length": 12,
    f"{A}.rollout.n": 8,
    f"{A}.actor.ppo_mini_batch_size": 8,
    f"{A}.actor.ppo_micro_batch_size_per_gpu": 32,
    f"{A}.rollout.log_prob_micro_batch_size_per_gpu": 64,
    f"{A}.model.enable_gradient_checkpointing": False,
    f"{A}.actor.optim.lr": 3e-3,
}


def make(**options):
    found = engines.get("verl")
    given = {"model": "synthetic:learner-tiny", "cpu": True, "python": PYTHON, "fixed": SMALL, "start_timeout_s": 300, **options}
    return found(found.Options(kind="verl", **given))


def configuration(**values):
    return Configuration(engine="verl", values=values)


def given(launch):
    return dict(part.lstrip("+").split("=", 1) for part in launch.argv[launch.argv.index("-m") + 2 :])


def test_a_launch_is_verls_own_program(context):
    launch = make(fork=False).launch(configuration(**{f"{A}.rollout.max_num_seqs": 16, "env.NCCL_DEBUG": "INFO"}), context)
    assert launch.argv[:3] == (str(PYTHON), "-m", "verl.trainer.main_ppo")
    asked = given(launch)
    assert asked[f"{A}.rollout.max_num_seqs"] == "16" and asked["algorithm.adv_estimator"] == "grpo"
    assert asked["trainer.logger"] == "[console,file]" and asked["trainer.resume_mode"] == "disable" and asked["data.seed"] == "11"
    assert launch.env["VERL_FILE_LOGGER_PATH"] == str(context.folder / "steps-0.jsonl") and launch.env["NCCL_DEBUG"] == "INFO"
    assert not any("NCCL" in part for part in launch.argv)


def test_the_cpu_plug_in_is_named_only_where_it_is_asked_for(context):
    on_cpu = make().launch(configuration(), context)
    assert on_cpu.env["VERL_PLATFORM"] == "cpu" and "autotune_verl_cpu" in on_cpu.env["VERL_USE_EXTERNAL_MODULES"]
    assert given(on_cpu)[f"{A}.rollout.name"] == "hf_cpu"
    fixed = {**SMALL, f"{A}.rollout.name": "vllm"}
    on_gpu = make(cpu=False, fixed=fixed).launch(configuration(), context.model_copy(update={"gpus": (2,)}))
    assert "VERL_PLATFORM" not in on_gpu.env and on_gpu.env["VERL_USE_EXTERNAL_MODULES"] == "autotune_verl_trial"
    assert on_gpu.env["CUDA_VISIBLE_DEVICES"] == "2"
    assert given(on_gpu)[f"{A}.rollout.name"] == "vllm" and "trainer.device" not in given(on_gpu)


def test_ppo_has_a_critic_of_the_same_model(context):
    asked = given(make(algorithm="ppo").launch(configuration(), context))
    assert asked["algorithm.adv_estimator"] == "gae" and asked["critic.model.path"] == asked[f"{A}.model.path"]
    assert "critic.model.path" not in given(make().launch(configuration(), context))


def test_sizes_that_verl_insists_on_start_where_the_guides_do(context):
    asked = given(make(fixed={}).launch(configuration(), context))
    assert (
        asked[f"{A}.actor.ppo_micro_batch_size_per_gpu"] == "1" and asked[f"{A}.rollout.log_prob_micro_batch_size_per_gpu"] == "2"
    )


def test_what_lies_beside_the_study_is_found_from_a_trials_folder(context, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "train.parquet", "reward.py"):
        (tmp_path / name).write_text("{}")
    engine = make(model="model", dataset="train.parquet", reward="reward.py:score", fixed={})
    asked = " ".join(engine.launch(configuration(), context).argv)
    for name in ("model.path", "train_files", "val_files", "custom_reward_function.path"):
        assert f"{name}={tmp_path}/" in asked.replace("'", "").replace('"', ""), name


def test_a_users_model_data_and_reward(context):
    engine = make(model="/models/mine", dataset="/data/train.parquet", reward="/code/reward.py:score", processes=2, cpu=False)
    asked = given(engine.launch(configuration(), context))
    assert asked["data.train_files"] == asked["data.val_files"] == "/data/train.parquet"
    assert asked["reward.custom_reward_function.path"] == "/code/reward.py"
    assert asked["reward.custom_reward_function.name"] == "score"
    assert asked["trainer.n_gpus_per_node"] == "2" and engine.gpus_needed(configuration()) == 2


def test_keys_that_verls_files_do_not_list_are_added():
    assert override(f"{A}.rollout.engine_kwargs.vllm.kv_cache_dtype", "fp8").startswith("++")
    assert override(f"{A}.rollout.n", 4) == f"{A}.rollout.n=4"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (3, "3"), (1e-06, "1e-06"), ("fsdp2", "fsdp2"), ("/a/b.parquet", "/a/b.parquet"),
        ("true", "'true'"), ("NaN", "'NaN'"), ("1.5", "'1.5'"), ("a b", "'a b'"),
        ("it's", "'it\\'s'"), ("", "''"), ("a,b=c", "'a,b=c'"),
        (["console", "file"], "[console,file]"), ({"type": "mean"}, "{type:mean}"),
    ],
)  # fmt: skip
def test_values_in_hydras_grammar(value, text):
    assert hydra(value) == text


def test_samples_of_a_step(context):
    assert samples_per_step(make().launch(configuration(), context).argv) == 64
    assert samples_per_step(("python",)) == 1024, "verl's own defaults"


def test_another_seed_changes_nothing_else(context):
    launch = make().launch(configuration(), context)
    other = reseed(launch, 5)
    changed = [(a, b) for a, b in zip(launch.argv, other.argv, strict=True) if a != b]
    assert changed == [("data.seed=11", "data.seed=5"), (f"{A}.actor.data_loader_seed=11", f"{A}.actor.data_loader_seed=5")]


def test_rays_sockets_fit_their_limit(context):
    socket = ray_folder(context) / "ray/session_2026-11-21_12-30-00_123456_1234567/sockets/plasma_store"
    assert len(str(socket)) < 107


def recorded(name, samples=64):
    read = reader(samples)
    return [read(json.loads(line)) for line in (DATA / name).read_text().splitlines()]


def test_recorded_grpo_steps_are_read():
    steps = recorded("verl_grpo_steps.jsonl")
    assert [step.number for step in steps] == [1, 2, 3]
    metrics = steps[1].metrics
    assert metrics["sps"] == pytest.approx(64 / metrics["step_s"]) and metrics["train_tokens_per_s"] > 0
    assert {"reward", "generate_s", "log_prob_s", "update_s", "weight_sync_s", "entropy", "grad_norm", "loss"} <= set(metrics)
    parts = metrics["generate_s"] + metrics["log_prob_s"] + metrics["update_s"] + metrics["weight_sync_s"]
    assert parts <= metrics["step_s"] * 1.01
    assert "kl" not in metrics, "without a reference model there is none"
    assert 0 < metrics["trainer_memory_gib"] < 64


def test_recorded_ppo_steps_count_the_critic():
    metrics = recorded("verl_ppo_steps.jsonl")[1].metrics
    raw = json.loads((DATA / "verl_ppo_steps.jsonl").read_text().splitlines()[1])["data"]
    assert metrics["update_s"] == pytest.approx(raw["timing_s/update_actor"] + raw["timing_s/update_critic"])
    assert metrics["kl"] == pytest.approx(raw["actor/kl_loss"])


def test_a_loss_that_is_not_finite_is_broken():
    raw = json.loads((DATA / "verl_grpo_steps.jsonl").read_text().splitlines()[0])
    raw["data"] |= {"actor/pg_loss": float("nan"), "actor/entropy": None, "actor/note": "text"}
    step = reader(64)(raw)
    assert step.broken == ("loss",) and not {"loss", "entropy"} & set(step.metrics)


def test_a_run_waits_for_its_validation_too():
    raw = json.loads((DATA / "verl_grpo_steps.jsonl").read_text().splitlines()[1])
    alone = reader(64)(raw).metrics
    raw["data"] |= {"timing_s/testing": 2.0, "timing_s/save_checkpoint": 0.5, "autotune/reward_s": 0.25}
    found = reader(64)(raw).metrics
    assert found["step_s"] == pytest.approx(alone["step_s"] + 2.0) and found["sps"] == pytest.approx(64 / found["step_s"])
    assert (found["testing_s"], found["save_checkpoint_s"], found["reward_s"]) == (2.0, 0.5, 0.25)


def test_a_record_without_a_step_time_is_no_step():
    assert reader(64)({"step": 0, "data": {"val-core/x": 1.0}}) is None


@pytest.fixture(scope="module")
def space():
    file = spaces.load("verl_ppo")
    names = [
        f"{A}.actor.ppo_micro_batch_size_per_gpu", f"{A}.rollout.log_prob_micro_batch_size_per_gpu", "data.train_batch_size",
        f"{A}.actor.ppo_mini_batch_size", f"{A}.rollout.n", f"{A}.actor.use_kl_loss", "algorithm.use_kl_in_reward",
        f"{A}.actor.kl_loss_coef", "algorithm.kl_ctrl.kl_coef",
    ]  # fmt: skip
    parameters = {name: file.parameters[name] for name in names}
    fixed = {"trainer.n_gpus_per_node": 4, "trainer.nnodes": 1, "algorithm.adv_estimator": "grpo"}
    return Space([EngineSpace(engine="verl", parameters=parameters, forbid=file.forbid, fixed=fixed)])


def drawn(data, space):
    def choose(name, distribution):
        if hasattr(distribution, "values"):
            return data.draw(st.sampled_from(distribution.values))
        return data.draw(st.integers(distribution.low, distribution.high))

    return space.decode(space.suggest(choose))


@hypothesis_given(data=st.data())
@settings(max_examples=300)
def test_no_allowed_point_breaks_verls_arithmetic(space, data):
    found = drawn(data, space)
    values = found.values
    if space.forbidden(found) is not None:
        return
    share = values[f"{A}.actor.ppo_mini_batch_size"] * values[f"{A}.rollout.n"]
    assert values[f"{A}.actor.ppo_mini_batch_size"] <= values["data.train_batch_size"]
    assert share % (4 * values[f"{A}.actor.ppo_micro_batch_size_per_gpu"]) == 0
    assert values[f"{A}.rollout.log_prob_micro_batch_size_per_gpu"] == 2 * values[f"{A}.actor.ppo_micro_batch_size_per_gpu"]
    assert not (values[f"{A}.actor.use_kl_loss"] and values["algorithm.use_kl_in_reward"])
    assert (f"{A}.actor.kl_loss_coef" in values) == values[f"{A}.actor.use_kl_loss"]
    assert ("algorithm.kl_ctrl.kl_coef" in values) == values["algorithm.use_kl_in_reward"]
    assert values[f"{A}.rollout.n"] >= 2


def test_old_names_are_answered():
    replaced = spaces.load("verl_ppo").replaced
    assert {"ppo_micro_batch_size", "kl_coef", "critic.model.fsdp_config.param_offload", "gpu_memory_utilization"} <= set(replaced)


@needs_verl
@pytest.mark.engine
def test_every_parameter_of_the_space_is_verls_own():
    (verdict,) = make().preflight([configuration()])
    assert verdict.refused is None
    added = (f"{A}.rollout.enable_sleep_mode", f"{A}.rollout.engine_kwargs.vllm.")
    unknown = [name for name in spaces.load("verl_ppo").parameters if name not in verdict.resolved and not name.startswith(added)]
    assert unknown == []


@needs_verl
@pytest.mark.engine
def test_verl_itself_refuses_what_it_would_refuse_after_a_minute():
    asked = [
        {f"{A}.actor.nope": 1},
        {"data.train_batch_size": 4},
        {"trainer.n_gpus_per_node": 3},
        {f"{A}.actor.use_dynamic_bsz": True},
    ]
    verdicts = make().preflight([configuration(**values) for values in asked])
    assert [verdict.refused is not None for verdict in verdicts] == [True, True, True, False]
    assert "nope" in verdicts[0].refused and "train_batch_size" in verdicts[1].refused


REWARD = """
def score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return {"score": float(len(solution_str) % 3), "json_ok": 0.25, "rollout_hit_rate": 0.75}
"""


@needs_verl
@pytest.mark.engine
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_an_unmodified_verl_trains_on_a_cpu(context, algorithm, tmp_path):
    """GRPO with a reward function of the user's own, which reports more than its score; PPO with the learner's."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    own = {"reward": f"{tmp_path / 'my_reward.py'}:score"} if algorithm == "grpo" else {}
    workload = workloads.get("training")
    options = workload.Options(kind="training", steps=3, warm_up_steps=1, deadline_s=200)
    fixed = {**SMALL, **({"critic.ppo_micro_batch_size_per_gpu": 64, "critic.optim.lr": 1e-3} if algorithm == "ppo" else {})}
    job = TrialJob(number=0, configuration=configuration(**{f"{A}.rollout.max_num_seqs": 64}), origin=Origin.SEARCH)
    record = evaluate(job, make(algorithm=algorithm, fixed=fixed, **own), workload(options), context, lambda label, share: None)
    assert isinstance(record.outcome, Measured), record.outcome
    measurement = record.outcome.measurement
    assert [row.level["step"] for row in measurement.rows] == [2, 3, 4]
    assert {"sps", "reward", "generate_s", "update_s", "peak_memory_gib", "start_s"} <= set(measurement.totals)
    added = {"reward_std", "zero_std_ratio", "validity_rate", "reward_s"}
    assert added <= set(measurement.totals), "what a trial adds to verl's metrics"
    assert measurement.totals["reward_s"] > 0
    if own:
        assert measurement.totals["validity_rate"] == 0.25 and measurement.totals["rollout_hit_rate"] == 0.75
    assert process.tagged(context.tag) == [] and not ray_folder(context).exists()


@needs_verl
@pytest.mark.engine
def test_a_worker_that_dies_is_told_within_the_limit(context):
    """verl's driver may live on for minutes after its worker died; the trial does not wait for it."""
    workload = workloads.get("training")
    options = workload.Options(kind="training", steps=3, deadline_s=200)
    job = TrialJob(number=0, configuration=configuration(), origin=Origin.SEARCH)
    broken = make(reward="/nowhere/reward.py:score")
    record = evaluate(job, broken, workload(options), context, lambda label, share: None)
    assert record.outcome.kind in (FailureKind.CRASHED, FailureKind.INVALID_CONFIG), record.outcome
    assert any("/nowhere/reward.py" in line for line in record.outcome.evidence)
    assert record.seconds["start"] < 250 and process.tagged(context.tag) == []
