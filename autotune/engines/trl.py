"""TRL as an engine: GRPO, RLOO and DPO by TRL's own training scripts, or by the user's.

A trial is a YAML file that `trl grpo --config` would accept, run through the same script under a tap that writes each step's
measurements (`_trl/tap.py`). The parameters are the fields of TRL's config classes, by their own names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import model_validator

from autotune import gpu, process
from autotune.engines import _environment, _learner_model
from autotune.engines._training import (
    FIRST_STEPS,
    Begin,
    Dialect,
    LaunchedTraining,
    TrainingOptions,
    faults,
    finite,
    horizon_faults,
    local,
    missing_file,
)
from autotune.engines._training_log import Own, diagnose
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Serves, Session, Step, Verdict
from autotune.errors import AutotuneError, Mistake
from autotune.trial import Configuration, Value

HERE = Path(__file__).parent / "_trl"
CONFIG = "trial.yaml"
FAMILY = "qwen3"
"""Architecture of the synthetic model."""
PACKAGES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets", "vllm", "deepspeed", "liger-kernel")
_DATA = {"grpo": "prompts", "rloo": "prompts", "dpo": "pairs"}
_REFUSALS = ("ValueError", "TypeError", "HfArgumentParserError", "ArgumentError", "ImportError", "ModuleNotFoundError")
_OURS: Mapping[str, Value] = {
    "logging_steps": 1,
    "logging_first_step": True,
    # By default the trainer hides a NaN loss behind the mean of earlier ones.
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""What a trial needs so that every step is reported and nothing else is written."""
_ON_CPU: Mapping[str, Value] = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}

_METRICS: Mapping[str, tuple[str, ...]] = {
    "reward": ("reward",),
    "reward_std": ("reward_std",),
    "zero_std_ratio": ("frac_reward_zero_std",),
    "kl": ("kl",),
    "loss": ("loss",),
    "entropy": ("entropy",),
    "grad_norm": ("grad_norm",),
    "response_tokens": ("completions/mean_length",),
    "truncated_ratio": ("completions/clipped_ratio",),
    "clip_ratio": ("clip_ratio/region_mean",),
    "validity_rate": ("validity_rate", "json_ok", "valid"),
    "rollout_hit_rate": ("rollout_hit_rate",),
    "preference_accuracy": ("rewards/accuracies",),
    "preference_margin": ("rewards/margins",),
}
"""Autotune's metric → TRL's, the first that is reported."""
_OF_PAIRS = ("preference_accuracy", "preference_margin")
_OF_ROLLOUTS = (
    "reward", "reward_slope", "reward_std", "zero_std_ratio", "kl", "response_tokens", "truncated_ratio", "clip_ratio",
    "validity_rate", "rollout_hit_rate", "generate_s", "log_prob_s", "reward_s", "update_s", "fresh_sps", "weight_sync_s",
)  # fmt: skip
_NO_KL = "TRL reports no KL while beta is 0. Give engine.fixed a beta above 0, or leave KL out of the goals."
_MUST_BE_FINITE = ("loss", "grad_norm", "reward", "kl", "entropy")


_FORMATS: Mapping[str, str] = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""A file of prompts by its ending → the builder that TRL's own scripts load it with."""


def _prompts(dataset: str, own_script: bool) -> dict[str, Value]:
    """A dataset in TRL's words: `dataset_name` takes folders and hub names, a file goes into `datasets`. A script of the user's
    own is given the name to load as it likes."""
    builder = None if own_script else _FORMATS.get(Path(dataset).suffix)
    if builder is None:
        return {"dataset_name": local(dataset)}
    return {"datasets": [{"path": builder, "data_files": local(dataset), "split": "train"}]}


class TrlOptions(TrainingOptions):
    """The `engine:` section of a TRL study."""

    algorithm: Literal["grpo", "rloo", "dpo"] = "grpo"
    script: Path | None = None
    """A training script of the user's own that takes `--config FILE --seed N` as TRL's scripts do; None is TRL's."""

    @model_validator(mode="before")
    @classmethod
    def _implied(cls, section: Any) -> Any:
        """What the options say in TRL's own words, so that conditions and rules of the space can read it."""
        if not isinstance(section, Mapping):
            return section
        implied: dict[str, Value] = dict(_ON_CPU) if section.get("cpu") is True else {}
        if section.get("dataset") is not None:
            implied |= _prompts(str(section["dataset"]), section.get("script") is not None)
        if section.get("reward") is not None:
            implied["reward_funcs"] = [section["reward"]]
        fixed = section.get("fixed") or {}
        return {**section, "fixed": {**implied, **fixed}} if isinstance(fixed, Mapping) else section


class Trl(Engine):
    """Trains with TRL."""

    kind: ClassVar[str] = "trl"
    serves: ClassVar[Serves] = "training"
    Options: ClassVar[type[EngineOptions]] = TrlOptions
    options: TrlOptions

    def check(self) -> Iterator[Mistake]:
        yield from super().check()
        yield from horizon_faults(self.options, "max_steps", "num_train_epochs")
        script = self.options.script
        if script is not None:
            yield from missing_file("script", script)
            return
        yield from faults(self.options, "dataset_name", "datasets")
        dataset = Path(self.options.dataset or "").expanduser()
        if dataset.is_file() and dataset.suffix not in _FORMATS:
            yield Mistake("dataset", "TRL cannot read a file of this kind.", found=repr(dataset.name), allowed=", ".join(_FORMATS))

    def identity(self) -> Identity:
        install = f"make engine-trl, or: {_environment.interpreter(self.options.python)} -m pip install trl==1.16.0"
        return _environment.identity(self.kind, self.options.python, PACKAGES, self.options.cpu, install)

    def gpus_needed(self, configuration: Configuration) -> int:
        return 0 if self.options.cpu else self.options.processes

    def model_path(self, cache: Path) -> str:
        return str(_learner_model.folder(self.options.model, FAMILY, cache) or local(self.options.model))

    def arguments(self, configuration: Configuration, model: str) -> dict[str, Value]:
        """What the training is asked for, without what a trial alone needs; the exported file holds the same."""
        asked: dict[str, Value] = {"model_name_or_path": model}
        if _learner_model.size_of(self.options.model) is not None:
            asked["dataset_name"] = str(Path(model) / "data" / _DATA[self.options.algorithm])
            if self.options.algorithm != "dpo":
                asked["reward_funcs"] = ["learner_rewards.share_on_target"]
        asked |= {**self.options.fixed, **configuration.values}
        return {name: value for name, value in asked.items() if value is not None and not name.startswith("env.")}

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        options = self.options
        content = {
            **self.arguments(configuration, self.model_path(context.cache)),
            **_OURS,
            "max_steps": options.total_steps,
            "output_dir": str(context.scratch.absolute() / "output"),
        }
        script = str(options.script.absolute()) if options.script else f"trl.scripts.{options.algorithm}"
        python = _environment.interpreter(options.python)
        prefix, port = [python], str(process.free_port())
        if options.processes > 1:
            prefix += ["-m", "accelerate.commands.launch", "--num_processes", str(options.processes), "--main_process_port", port]
        steps = str(context.folder.absolute() / FIRST_STEPS)
        config = str(context.folder.absolute() / CONFIG)
        return Launch(
            argv=(*prefix, str(HERE / "tap.py"), steps, script, "--config", config, "--seed", str(context.seed)),
            # TRL looks for a free port itself and always finds 29500 first: trials that start together would take the same one.
            env={"MASTER_PORT": port, **self.environment(configuration, context)},
            files={CONFIG: yaml.safe_dump(content, sort_keys=False)},
        )

    def environment(self, configuration: Configuration, context: Context) -> dict[str, str]:
        """Variables of the training process; the study's own win."""
        tuned = {name.removeprefix("env."): str(value) for name, value in configuration.values.items() if name.startswith("env.")}
        return {
            "OMP_NUM_THREADS": str(self.options.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": modules(),
            "PYTHONUNBUFFERED": "1",
            **_environment.compiled(context.cache.absolute() / self.kind),
            **gpu.visible(context.gpus),
            **({"HF_HUB_OFFLINE": "1"} if _learner_model.size_of(self.options.model) else {}),
            **self.options.env,
            **tuned,
        }

    def open(self, launch: Launch, context: Context) -> Session:
        _learner_model.make(self.options.model, FAMILY, context.cache, _environment.interpreter(self.options.python))
        return LaunchedTraining(launch, context, self.options, Dialect(read_line, reseed, self.diagnose))

    def own(self) -> Own:
        """The study's own script and the module of its reward."""
        script, module = self.options.script, (self.options.reward or "").rpartition(".")[0]
        called = f"/{module.replace('.', '/')}.py" if module else None
        return Own(script=str(script.absolute()) if script is not None else None, called=called)

    def flags(self) -> Mapping[str, Flag]:
        return {name: Flag(**flag) for name, flag in self.ask({"ask": "flags"}).items()}

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        asked = [self.arguments(configuration, self.options.model) for configuration in configurations]
        if self.options.script is not None:
            # What a script of the user's own does with it is not TRL's to say.
            asked = [{name: value for name, value in one.items() if name != "reward_funcs"} for one in asked]
        return [Verdict(**verdict) for verdict in self.ask({"ask": "check", "arguments": asked})]

    def ask(self, question: Mapping[str, Value]) -> Any:
        """Ask TRL's own config classes, in TRL's environment."""
        python = _environment.interpreter(self.options.python)
        told = process.run(
            [python, str(HERE / "check.py")],
            timeout_s=180,
            # The module of a reward may read what the study gives its trials.
            env={
                "PYTHONPATH": modules(),
                **self.options.env,
                "OMP_NUM_THREADS": "1",
                "WORLD_SIZE": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdin=json.dumps({"algorithm": self.options.algorithm, "processes": self.options.processes, **question}),
        )
        if told.returncode != 0:
            raise AutotuneError(f"TRL in {python} could not be asked about its parameters: {told.stderr.strip()[-400:]}")
        return json.loads(told.stdout.splitlines()[-1])

    def unreported(self, values: Mapping[str, Value]) -> Mapping[str, str]:
        if self.options.script is not None:
            return {}
        if self.options.algorithm == "dpo":
            return dict.fromkeys(_OF_ROLLOUTS, "DPO generates no answers and has no reward.")
        missing = dict.fromkeys(_OF_PAIRS, f"Only DPO has pairs, not {self.options.algorithm.upper()}.")
        return missing | ({"kl": _NO_KL} if values.get("beta", 0) == 0 else {})

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        return diagnose(log, _REFUSALS, self.own())


def modules() -> str:
    """Where a training finds the module of its reward: where autotune runs, and the synthetic model's."""
    return f"{Path.cwd()}:{_learner_model.FOLDER}"


def read_line(record: Mapping[str, Any]) -> Step | Begin | None:
    """One line of the tap's file."""
    if record.get("event") == "begin":
        return Begin(effective=record["arguments"], versions=record["versions"])
    if record.get("event") != "step":
        return None
    logs, phases, seconds = record["logs"], record["phases"], float(record["step_s"])
    metrics: dict[str, float | None] = {
        name: next((logs[theirs] for theirs in names if theirs in logs), None) for name, names in _METRICS.items()
    }
    metrics |= {name: phases.get(name) for name in ("generate_s", "log_prob_s", "reward_s", "weight_sync_s")}
    if "generate_s" in phases:
        # The engine takes over new weights right before it generates with them.
        metrics["generate_s"] = phases["generate_s"] - phases.get("weight_sync_s", 0.0)
    if record.get("rollout_hit_rate") is not None:
        metrics["rollout_hit_rate"] = record["rollout_hit_rate"]
    metrics |= {"step_s": seconds, "trainer_memory_gib": record.get("trainer_memory_gib")}
    metrics["sps"] = record["samples"] / seconds
    if record["fresh_samples"]:
        metrics["fresh_sps"] = record["fresh_samples"] / seconds
    if record["fresh_samples"] is not None:
        metrics["update_s"] = seconds - phases.get("rollout_s", 0.0)
    if record["tokens"] is not None:
        metrics["train_tokens_per_s"] = record["tokens"] / seconds
    return Step(
        number=record["step"],
        metrics=finite(metrics),
        samples=record["samples"],
        fresh_samples=record["fresh_samples"],
        tokens=None if record["tokens"] is None else int(record["tokens"]),
        broken=tuple(name for name in record["broken"] if name in _MUST_BE_FINITE),
    )


def reseed(launch: Launch, seed: int) -> Launch:
    """The same launch with another seed."""
    return launch.model_copy(update={"argv": (*launch.argv[:-1], str(seed))})


engine = Trl
