"""verl as an engine: PPO and GRPO by `python -m verl.trainer.main_ppo`, unmodified.

The parameters are verl's own configuration keys, dots and all. Steps are read from verl's file logger, which writes each one
as it ends, so that a run that is killed keeps what it measured. verl tells of a refused configuration only after a minute of
starting up, so `preflight` asks Hydra and verl's own validation first.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from autotune import gpu, process
from autotune.engines import _environment, _learner_model, _verl_fork
from autotune.engines._training import (
    FIRST_STEPS,
    Dialect,
    LaunchedTraining,
    TrainingOptions,
    faults,
    horizon_faults,
    local,
    missing_file,
)
from autotune.engines._training_log import Own, diagnose
from autotune.engines._verl_hydra import A, override
from autotune.engines._verl_log import FATAL, MILESTONES
from autotune.engines._verl_steps import reader, samples_per_step
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Identity, Launch, Serves, Session, Verdict
from autotune.errors import AutotuneError, Mistake
from autotune.trial import Configuration, Value

HERE = Path(__file__).parent
CPU_FOLDER = HERE / "_verl_cpu"
TRIAL_FOLDER = HERE / "_verl"
PACKAGES = ("verl", "torch", "transformers", "ray", "tensordict", "vllm", "sglang", "flash-attn", "liger-kernel")
FAMILY = "llama"
"""Architecture of the synthetic model: for Qwen3 verl wants tokens of Qwen's own tokenizer."""
_REFUSALS = (
    "ValueError", "AssertionError", "NotImplementedError", "InstantiationException", "ConfigCompositionException", "TypeError",
    "ConfigAttributeError", "ValidationError", "MissingMandatoryValue", "ImportError", "ModuleNotFoundError",
)  # fmt: skip
_OURS: Mapping[str, Value] = {
    "trainer.logger": ["console", "file"],
    "trainer.resume_mode": "disable",
    "trainer.val_before_train": False,
    "trainer.total_epochs": 1_000_000,
    "trainer.project_name": "autotune",
    "trainer.experiment_name": "trial",
}
_START: Mapping[str, Value] = {
    f"{A}.actor.ppo_micro_batch_size_per_gpu": 1,
    f"{A}.rollout.log_prob_micro_batch_size_per_gpu": 2,
    f"{A}.ref.log_prob_micro_batch_size_per_gpu": 2,
    "critic.ppo_micro_batch_size_per_gpu": 2,
}
"""verl has no default for these and refuses to start without them. The guides' first step, make it run, begins with 1, and a
forward pass alone with twice that; a trial that names no size runs with these, the default trial among them."""
_SMALL: Mapping[str, Value] = {
    f"{A}.rollout.tensor_model_parallel_size": 1,
    f"{A}.rollout.agent.num_workers": 1,
    "reward.num_workers": 1,
    "data.dataloader_num_workers": 0,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    "ray_kwargs.ray_init.include_dashboard": False,
    f"{A}.model.override_config.attn_implementation": "sdpa",
}
"""verl's own defaults for these are for a node of eight GPUs with flash-attention; a study's values win over these."""
_ON_CPU: Mapping[str, Value] = {
    "trainer.device": "cpu",
    f"{A}.rollout.name": "hf_cpu",
    f"{A}.rollout.dtype": "float32",
    f"{A}.rollout.free_cache_engine": False,
    f"{A}.actor.strategy": "fsdp2",
    f"{A}.ref.strategy": "fsdp2",
    "critic.strategy": "fsdp2",
    f"{A}.model.use_remove_padding": False,
    f"{A}.actor.use_torch_compile": False,
    f"{A}.actor.fsdp_config.use_torch_compile": False,
    f"{A}.actor.fsdp_config.dtype": "float32",
    f"{A}.actor.fsdp_config.mixed_precision.param_dtype": "fp32",
    # verl places its workers on Ray's GPUs and wants far more CPUs than its processes use.
    "ray_kwargs.ray_init.num_gpus": 1,
    "ray_kwargs.ray_init.num_cpus": 32,
    "ray_kwargs.ray_init.object_store_memory": 200_000_000,
}


def _reward(place: str) -> dict[str, Value]:
    path, _, function = place.rpartition(":")
    return {"reward.custom_reward_function.path": local(path), "reward.custom_reward_function.name": function}


def _data(section: Mapping[str, Any]) -> dict[str, Value]:
    """Prompts and reward as the section names them."""
    found: dict[str, Value] = {}
    if section.get("dataset") is not None:
        training = str(section["dataset"])
        found |= {"data.train_files": local(training), "data.val_files": local(str(section.get("validation") or training))}
    return found | (_reward(str(section["reward"])) if section.get("reward") is not None else {})


class VerlOptions(TrainingOptions):
    """The `engine:` section of a verl study. `dataset` is a parquet file of prompts; `processes` is trainer.n_gpus_per_node."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    validation: str | None = None
    """A parquet file; verl wants one even where it never validates. None is the training file."""
    poll_s: float = Field(default=0.05, gt=0)
    """How often the trainer looks for finished samples; verl's own 2 s hide a short step's speed."""
    fork: Literal["auto"] | bool = "auto"
    """Fork the processes that Ray starts from one that has imported everything, instead of importing it in each.

    On two busy cores a trial's first step came after 23 s instead of 55. Forked processes share what they have imported, so
    that the host's peak memory is lower than that of a run started by hand, there by 2 GiB: leave it off where that memory is
    an objective. `auto` forks on CPUs only, as it has not been proven on a GPU, and where `processes` is 1, since each of
    several sees GPUs of its own.
    """

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, section: Any) -> Any:
        """What the options say in verl's own words, so that conditions and rules of the space can read it."""
        if not isinstance(section, Mapping):
            return section
        processes = section.get("processes", 1)
        implied: dict[str, Value] = {
            "algorithm.adv_estimator": "gae" if section.get("algorithm") == "ppo" else "grpo",
            "trainer.n_gpus_per_node": processes,
            "trainer.nnodes": 1,
            f"{A}.rollout.n_gpus_per_node": processes,
            **(_ON_CPU if section.get("cpu") is True else {}),
            **_data(section),
        }
        fixed = section.get("fixed") or {}
        return {**section, "fixed": {**implied, **fixed}} if isinstance(fixed, Mapping) else section


class Verl(Engine):
    """Trains with verl."""

    kind: ClassVar[str] = "verl"
    serves: ClassVar[Serves] = "training"
    Options: ClassVar[type[EngineOptions]] = VerlOptions
    options: VerlOptions

    def check(self) -> Iterator[Mistake]:
        yield from super().check()
        yield from faults(self.options, "data.train_files")
        yield from horizon_faults(self.options, "trainer.total_training_steps", "trainer.total_epochs")
        if self.options.reward is not None:
            path, _, function = self.options.reward.rpartition(":")
            if not path or not function:
                yield Mistake("reward", "A reward function is named as file.py:function.", found=repr(self.options.reward))
            else:
                yield from missing_file("reward", path)

    def identity(self) -> Identity:
        install = f"make engine-verl, or: {_environment.interpreter(self.options.python)} -m pip install verl==0.9.1"
        return _environment.identity(self.kind, self.options.python, PACKAGES, self.options.cpu, install)

    def gpus_needed(self, configuration: Configuration) -> int:
        return 0 if self.options.cpu else self.options.processes

    def model_path(self, cache: Path) -> str:
        return str(_learner_model.folder(self.options.model, FAMILY, cache) or local(self.options.model))

    def parameters(self, configuration: Configuration, model: str) -> dict[str, Value]:
        """What the training is asked for, without what a trial alone needs; the exported file holds the same."""
        asked: dict[str, Value] = {f"{A}.model.path": model, **_START, **_SMALL}
        if self.options.algorithm == "ppo":
            asked["critic.model.path"] = model
        if _learner_model.size_of(self.options.model) is not None:
            data = Path(model) / "data" / "verl"
            asked |= {"data.train_files": str(data / "train.parquet"), "data.val_files": str(data / "validation.parquet")}
            asked |= _reward(f"{_learner_model.FOLDER / 'learner_rewards.py'}:compute_score")
        asked |= {**self.options.fixed, **configuration.values}
        return {name: value for name, value in asked.items() if not name.startswith("env.")}

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        asked = {
            **self.parameters(configuration, self.model_path(context.cache)),
            **_OURS,
            "trainer.total_training_steps": self.options.total_steps,
            "trainer.default_local_dir": str(context.scratch.absolute() / "checkpoints"),
            "data.seed": context.seed,
            f"{A}.actor.data_loader_seed": context.seed,
        }
        python, env = _environment.interpreter(self.options.python), self.environment(configuration, context)
        if not self._forks(asked):
            return Launch(argv=(python, "-m", "verl.trainer.main_ppo", *map(override, asked, asked.values())), env=env)
        place = ray_folder(context) / "fork"
        asked |= _verl_fork.parameters(python, place)
        arguments = tuple(map(override, asked, asked.values()))
        return Launch(argv=_verl_fork.argv(python, arguments), env={**_verl_fork.environment(asked, place), **env})

    def _forks(self, asked: Mapping[str, Value]) -> bool:
        """Whether workers are forked: never where a study names their interpreter itself."""
        wanted = self.options.cpu and self.options.processes == 1 if self.options.fork == "auto" else self.options.fork
        return wanted and _verl_fork.PY_EXECUTABLE not in asked

    def environment(self, configuration: Configuration, context: Context) -> dict[str, str]:
        """Variables of the training process; the study's own win."""
        tuned = {name.removeprefix("env."): str(value) for name, value in configuration.values.items() if name.startswith("env.")}
        cpu = self.options.cpu
        modules = ("autotune_verl_trial", *(("autotune_verl_cpu",) if cpu else ()))
        folders = (TRIAL_FOLDER, *((CPU_FOLDER,) if cpu else ()), Path.cwd())
        return {
            "PYTHONPATH": ":".join(map(str, folders)),
            "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
            "VERL_FILE_LOGGER_PATH": str(context.folder.absolute() / FIRST_STEPS),
            "AUTOTUNE_VERL_POLL_S": str(self.options.poll_s),
            "OMP_NUM_THREADS": str(self.options.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HYDRA_FULL_ERROR": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_COLOR_PREFIX": "0",
            "RAY_TMPDIR": str(ray_folder(context)),
            # Ray hides GPUs from a worker that asks for none; verl's CPU workers and its engines need what was leased.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **_environment.compiled(context.cache.absolute() / self.kind),
            **({"VERL_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1"} if cpu else {}),
            **(gpu.visible(context.gpus) if context.gpus else {}),
            **({"HF_HUB_OFFLINE": "1"} if _learner_model.size_of(self.options.model) else {}),
            **self.options.env,
            **tuned,
        }

    def open(self, launch: Launch, context: Context) -> Session:
        _learner_model.make(self.options.model, FAMILY, context.cache, _environment.interpreter(self.options.python))
        place = ray_folder(context)
        process.make_apart(place, context.tag)
        dialect = Dialect(
            reader(samples_per_step(launch.argv)),
            reseed,
            self.diagnose,
            ready_at_first_step=True,
            milestones=MILESTONES,
            fatal=FATAL,
            leftovers=(place,),
        )
        return LaunchedTraining(launch, context, self.options, dialect)

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        asked = [self.parameters(configuration, self.options.model) for configuration in configurations]
        return [Verdict(**verdict) for verdict in self.ask({"overrides": [list(map(override, a, a.values())) for a in asked]})]

    def ask(self, question: Mapping[str, Value]) -> Any:
        """Ask Hydra and verl's own validation, in verl's environment."""
        python = _environment.interpreter(self.options.python)
        env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        told = process.run([python, str(TRIAL_FOLDER / "check.py")], timeout_s=180, env=env, stdin=json.dumps(question))
        if told.returncode != 0:
            raise AutotuneError(f"verl in {python} could not be asked about its configuration: {told.stderr.strip()[-400:]}")
        return json.loads(told.stdout.splitlines()[-1])

    def unreported(self, values: Mapping[str, Value]) -> Mapping[str, str]:
        missing = dict.fromkeys(("preference_accuracy", "preference_margin"), "verl trains on no pairs.")
        switches = (f"{A}.actor.use_kl_loss", "algorithm.use_kl_in_reward")
        off = all(values.get(name, False) is False for name in switches)
        return missing | ({"kl": f"verl reports no KL while neither {switches[0]} nor {switches[1]} is true."} if off else {})

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        reward = (self.options.reward or "").rpartition(":")[0]
        return diagnose(log, _REFUSALS, Own(called=local(reward) if reward else None))


def reseed(launch: Launch, seed: int) -> Launch:
    """The same launch with another seed."""
    names = ("data.seed=", f"{A}.actor.data_loader_seed=")
    argv = tuple(f"{part.split('=', 1)[0]}={seed}" if part.startswith(names) else part for part in launch.argv)
    return launch.model_copy(update={"argv": argv})


def ray_folder(context: Context) -> Path:
    """Where Ray keeps its sockets and logs: a short path, since a socket's may have 107 characters."""
    return Path(tempfile.gettempdir()) / f"at-{hashlib.sha256(context.tag.encode()).hexdigest()[:8]}"


engine = Verl
