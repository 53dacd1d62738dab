"""The exporters of training runs: what they render, and that the framework's own parser reads it."""

from pathlib import Path

import pytest
import yaml

from autotune import exporters, process
from autotune.engines import _learner_model
from autotune.engines._verl_hydra import A
from autotune.engines.base import Identity
from autotune.errors import InvalidInput
from autotune.exporters import _proof
from autotune.exporters.base import Figure, Winner
from autotune.trial import Configuration

VENVS = Path(__file__).parents[2] / ".venvs"


def needs(engine):
    return pytest.mark.skipif(not (VENVS / engine / "bin" / "python").exists(), reason=f"make engine-{engine}")


def winner(kind, model_path="/models/tiny", options=None, values=None, **more):
    options = {
        "kind": kind,
        "model": "synthetic:learner-tiny",
        "cpu": True,
        "python": str(VENVS / kind / "bin/python"),
        **(options or {}),
    }
    return Winner(
        study="mine",
        trial=7,
        engine=Identity(kind=kind, version="1.0", python="3.11", device="cpu"),
        model=str(options["model"]),
        model_path=model_path,
        configuration=Configuration(engine=kind, values=values or {}),
        parameters=values or {},
        options=options,
        figures=(Figure(metric="reward", value=0.9, unit="reward", default=0.02),),
        measured_on="2026-11-21 on cpu",
        **more,
    )


TRL = {"learning_rate": 3e-3, "beta": 0.0, "num_generations": 4, "per_device_train_batch_size": 32, "env.NCCL_DEBUG": "INFO"}
VERL = {f"{A}.actor.ppo_micro_batch_size_per_gpu": 4, f"{A}.actor.optim.lr": 1e-3, f"{A}.rollout.n": 8}
SMALL_VERL = {"fixed": {"data.train_batch_size": 8, f"{A}.actor.ppo_mini_batch_size": 8}}


def test_trl_files_hold_what_was_measured_and_nothing_of_the_trial():
    files = exporters.get("trl_yaml").render(winner("trl", values=TRL, env={"NCCL_DEBUG": "INFO"}))
    content = yaml.safe_load(files["train.yaml"])
    assert content["learning_rate"] == 3e-3 and content["model_name_or_path"] == "/models/tiny" and content["use_cpu"] is True
    assert not {"max_steps", "logging_steps", "report_to", "env.NCCL_DEBUG"} & set(content)
    assert "reward = 0.9 reward (default 0.02)" in files["train.yaml"]
    assert "NCCL_DEBUG=INFO" in files["train.sh"] and "trl grpo --config train.yaml" in files["train.sh"]


def test_accelerate_is_told_of_the_gpus():
    single = yaml.safe_load(exporters.get("trl_yaml").render(winner("trl"))["accelerate.yaml"])
    assert single["use_cpu"] is True and single["num_processes"] == 1 and single["mixed_precision"] == "no"
    many = winner("trl", options={"model": "/m", "dataset": "/d", "cpu": False, "processes": 4}, gpus=4)
    spread = yaml.safe_load(exporters.get("trl_yaml").render(many)["accelerate.yaml"])
    assert spread["distributed_type"] == "MULTI_GPU" and spread["num_processes"] == 4 and spread["mixed_precision"] == "bf16"


def test_a_users_script_is_launched_by_accelerate():
    mine = winner("trl", options={"model": "/m", "dataset": "/d", "script": "my train.py"})
    assert "accelerate launch --config_file accelerate.yaml '" in exporters.get("trl_yaml").render(mine)["train.sh"]


def test_a_users_reward_is_found_by_the_exported_script(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    mine = winner("trl", options={"model": "/m", "dataset": "/d", "reward": "mine.score"}, interpreter=Path("/env x/bin/python"))
    launch = exporters.get("trl_yaml").render(mine)["train.sh"]
    (line,) = (line for line in launch.splitlines() if line.startswith("export PYTHONPATH="))
    assert str(tmp_path) in line
    assert "# Start it with: PATH='/env x/bin':\"$PATH\" sh train.sh" in launch
    given = {"PYTHONPATH": "/elsewhere"}
    assert "export PYTHONPATH=/elsewhere\n" in exporters.get("trl_yaml").render(mine.model_copy(update={"env": given}))["train.sh"]


def test_verl_files_nest_the_dotted_names():
    files = exporters.get("verl_overrides").render(winner("verl", options=SMALL_VERL, values=VERL))
    content = yaml.safe_load(files["tuned.yaml"])
    assert content["defaults"] == ["ppo_trainer", "_self_"]
    assert content["actor_rollout_ref"]["actor"]["ppo_micro_batch_size_per_gpu"] == 4
    assert content["data"]["train_batch_size"] == 8
    assert "actor_rollout_ref.actor.optim.lr=0.001" in files["overrides.sh"]
    assert "VERL_PLATFORM=cpu" in files["train.sh"] and "total_training_steps=" not in files["overrides.sh"]


def test_a_gpu_winner_needs_no_plug_in():
    options = {**SMALL_VERL, "cpu": False, "model": "/models/mine", "dataset": "/d.parquet"}
    files = exporters.get("verl_overrides").render(winner("verl", options=options, values=VERL))
    assert "VERL_USE_EXTERNAL_MODULES" not in files["train.sh"] and "autotune_verl" not in files["overrides.sh"]


@pytest.mark.parametrize(("cpu", "algorithm", "plugged"), [(True, "grpo", True), (False, "ppo", True), (False, "grpo", False)])
def test_a_launch_waits_for_samples_as_the_trial_did_or_says_that_it_does_not(cpu, algorithm, plugged):
    options = {**SMALL_VERL, "cpu": cpu, "algorithm": algorithm, "model": "/m", "dataset": "/d.parquet", "poll_s": 0.5}
    text = exporters.get("verl_overrides").render(winner("verl", options=options, values=VERL))["train.sh"]
    assert ("export AUTOTUNE_VERL_POLL_S=0.5\n" in text) is plugged
    assert ("every 0.5 s, verl itself does every 2 s" in text) is not plugged


@pytest.mark.parametrize(
    ("kind", "exporter", "values", "changed"),
    [("trl", "trl_yaml", TRL, "learning_rate"), ("verl", "verl_overrides", VERL, "data.train_batch_size")],
)
def test_what_the_engine_reads_otherwise_is_refused(kind, exporter, values, changed, monkeypatch):
    won = winner(kind, options=SMALL_VERL if kind == "verl" else {}, values=values)
    engine = _proof.configured(won)
    asked = dict((engine.arguments if kind == "trl" else engine.parameters)(won.configuration, won.model_path))
    chosen = exporters.get(exporter)
    files = chosen.render(won)

    def answering(read):
        answer = {"values": read, "processes": 1} if kind == "trl" else [{"resolved": read}]
        monkeypatch.setattr(type(engine), "ask", lambda self, question: answer)

    answering(asked)
    assert f"all {len(asked)} values" in chosen.prove(files, won)
    answering({**asked, changed: 7})
    with pytest.raises(InvalidInput, match=changed):
        chosen.prove(files, won)


@needs("trl")
@pytest.mark.engine
def test_trls_own_parser_reads_the_file():
    exporter, won = exporters.get("trl_yaml"), winner("trl", values=TRL)
    files = exporter.render(won)
    assert "own parser read train.yaml" in exporter.prove(files, won)
    with pytest.raises(InvalidInput, match="learning_rate"):
        exporter.prove({**files, "train.yaml": files["train.yaml"].replace("0.003", "0.004")}, won)
    with pytest.raises(InvalidInput):
        exporter.prove({**files, "train.yaml": files["train.yaml"] + "no_such_parameter: 1\n"}, won)


@needs("trl")
@pytest.mark.engine
@pytest.mark.parametrize("values", [{}, {"dtype": "bfloat16", "vllm_mode": "colocate", "use_vllm": True}])
def test_a_file_for_a_gpu_is_proved_where_none_is_in_view(values):
    won = winner("trl", options={"cpu": False}, values={**TRL, **values})
    exporter = exporters.get("trl_yaml")
    files = exporter.render(won)
    assert "use_cpu" not in files["train.yaml"]
    assert "own parser read train.yaml" in exporter.prove(files, won)


@needs("verl")
@pytest.mark.engine
def test_hydra_and_verl_accept_the_file():
    exporter, won = exporters.get("verl_overrides"), winner("verl", options=SMALL_VERL, values=VERL)
    files = exporter.render(won)
    assert "verl's own validation accepted it" in exporter.prove(files, won)
    with pytest.raises(InvalidInput, match="train_batch_size"):
        exporter.prove({**files, "tuned.yaml": files["tuned.yaml"].replace("train_batch_size: 8", "train_batch_size: 4")}, won)


@needs("trl")
@pytest.mark.engine
@pytest.mark.parametrize("reward", ["own", "synthetic"])
def test_the_exported_line_trains(tmp_path, monkeypatch, reward):
    python = str(VENVS / "trl/bin/python")
    _learner_model.make("synthetic:learner-tiny", "qwen3", tmp_path, python)
    model = _learner_model.folder("synthetic:learner-tiny", "qwen3", tmp_path)
    values = {"learning_rate": 3e-3, "max_completion_length": 12, "gradient_checkpointing": False}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_reward.py").write_text("def score(completions, **_): return [float(len(one)) for one in completions]")
    (tmp_path / "mine" / "prompts.jsonl").write_text('{"prompt": "t1 t1 :"}\n' * 64)
    monkeypatch.chdir(tmp_path / "mine")
    own = {"dataset": "prompts.jsonl", "reward": "my_reward.score"} if reward == "own" else {}
    won = winner("trl", model_path=str(model), values=values, options=own)
    assert "own parser read train.yaml" in exporters.get("trl_yaml").prove(exporters.get("trl_yaml").render(won), won)
    for name, text in exporters.get("trl_yaml").render(won).items():
        (tmp_path / name).write_text(text)
    path = f"{VENVS / 'trl/bin'}:/usr/bin:/bin"
    ran = process.run(["sh", str(tmp_path / "train.sh"), "--max_steps", "2"], 200, {"PATH": path}, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "output" / "model.safetensors").exists()
