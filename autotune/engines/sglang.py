"""SGLang as an engine: its OpenAI-compatible server, on a GPU or, with documented stand-ins, on a CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from autotune import gpu, models, process, synthetic
from autotune.engines import _flags, _logprobs
from autotune.engines import _sglang_args as args
from autotune.engines import _sglang_cpu as cpu
from autotune.engines import _sglang_log as log
from autotune.engines._answers import Answers
from autotune.engines._environment import interpreter, told_by_shell
from autotune.engines._server import ServingSession
from autotune.engines._sglang_cpu import cpu_support
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Serves, Session, Verdict
from autotune.errors import AutotuneError, MissingPrerequisite, Mistake, nearest
from autotune.secrets import is_secret_name
from autotune.standby import Ahead, Spawned
from autotune.trial import Configuration, Value

PROBE = Path(__file__).with_name("_sglang_probe.py")
_PROBE_TIMEOUT_S = 300.0
_SERVER = ("-m", "sglang.launch_server")
_INSTALL = "pip install sglang (without a GPU: make engine-sglang), or name the interpreter that has it as engine.python"
_CPU_PINS: Mapping[str, Value] = {"chunked_prefill_size": 2048, "max_total_tokens": 65536}
"""On a CPU, unless the study says otherwise: SGLang would take both from the memory that happens to be free."""
_CACHES: Mapping[str, str] = {
    "SGLANG_CACHE_DIR": "sglang",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
"""Where SGLang and what it builds upon keep compiled kernels: below the store, shared between trials."""

_IMPORTED = ("sglang.srt.server_args", "sglang.srt.plugins", "sglang.srt.entrypoints.http_server")
"""What the server imports before it knows its arguments."""
_SET_FOR_SPAWNED: Mapping[str, str] = {
    "CUDA_DEVICE_MAX_CONNECTIONS": "8",
    "TRTLLM_ENABLE_PDL": "1",
    "CUTE_DSL_LOG_LEVEL": "30",
    "CUTE_DSL_LOG_TO_CONSOLE": "1",
}
"""What SGLang 0.5.17 to 0.5.23 sets before it spawns (`_set_envs_and_config` of its entrypoints/engine.py)."""


class SglangOptions(EngineOptions):
    """The engine section of a study that tunes SGLang."""

    standby: Literal["auto"] | bool = "auto"
    """Have the next trial's interpreters import SGLang while the present trial is measured, on cores of their own.

    `auto` does so on GPUs, where a trial has eight cores or more; `true` also elsewhere, at idle priority, which disturbs what is
    measured.
    """


class SglangEngine(Engine):
    """The engine of kind `sglang`."""

    Options = SglangOptions
    options: SglangOptions

    kind: ClassVar[str] = "sglang"
    serves: ClassVar[Serves] = "http"

    @property
    def python(self) -> str:
        """The interpreter of the engine's environment."""
        return interpreter(self.options.python)

    @cached_property
    def on_cpu(self) -> bool:
        """Whether the server runs on the CPU: the study says so, or there is no GPU."""
        return bool((self.options.fixed.get("device") or self._identity["device"]) == "cpu")

    def check(self) -> Iterator[Mistake]:
        yield from super().check()
        yield from models.faults(self.options.model)

    def identity(self) -> Identity:
        told = self._identity
        version = told["packages"].get("sglang")
        if version is None:
            raise MissingPrerequisite(f"The engine 'sglang' needs the package sglang in {self.python}: {_INSTALL}.")
        device = "cpu" if self.on_cpu else told["device"]
        found = {"python": told["python"], "packages": told["packages"], "variables": told_by_shell()}
        return Identity(kind=self.kind, version=version, device=device, **found)

    def flags(self) -> Mapping[str, Flag]:
        return self._known_flags

    def model_path(self, cache: Path) -> str:
        return models.locate(self.options.model, cache)

    def explicit(
        self, configuration: Configuration, cache: Path, effective: Mapping[str, Value] | None = None
    ) -> Mapping[str, Value]:
        values = {**self.options.fixed, **configuration.values}
        own: dict[str, Value] = {"load_format": "dummy"} if synthetic.is_synthetic(self.options.model) else {}
        if effective["device"] == "cpu" if effective else self.on_cpu:
            return {**own, "device": "cpu", **_CPU_PINS, **values}
        pins = args.pinned(values, effective or self._default(cache)) if args.moves_memory(configuration.values) else {}
        return {**own, **pins, **values}

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        return self._preflight(configurations, models.shared_cache())

    def _preflight(self, configurations: Sequence[Configuration], cache: Path) -> list[Verdict]:
        verdicts = [self._own_check(configuration) for configuration in configurations]
        asked = [index for index, verdict in enumerate(verdicts) if verdict.refused is None]
        argvs = [self._arguments(self.explicit(configurations[index], cache), cache) for index in asked]
        about = {"env": dict(self._probe_environment), "model": self.model_digest(cache)}

        def ask(indices: list[int]) -> list[Verdict]:
            told = self._answers("resolve", [argvs[index] for index in indices])
            return [Verdict(refused=one.get("refused"), resolved=self._public(one.get("resolved", {}))) for one in told]

        found = self._kept.verdicts([{"resolve": list(argv), **about} for argv in argvs], ask)
        for index, verdict in zip(asked, found, strict=True):
            verdicts[index] = verdict
        return verdicts

    @staticmethod
    def _public(resolved: Mapping[str, Value]) -> dict[str, Value]:
        return {name: value for name, value in args.by_flag(resolved).items() if not is_secret_name(name)}

    def parse(self, argv: Sequence[str]) -> Mapping[str, Value]:
        """The values SGLang's own parser reads from an argv, a `--config` file included.

        Raises AutotuneError with the parser's message when it refuses.
        """
        told = self._answers("parse", [argv])[0]
        if "refused" in told:
            raise AutotuneError(f"SGLang's parser refuses it: {told['refused']}")
        parsed: Mapping[str, Value] = told["parsed"]
        return parsed

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        parameters = self.explicit(configuration, context.cache)
        port = process.free_port()
        base = {"host": "127.0.0.1", "port": port, "enable_metrics": True, "random_seed": context.seed % (1 << 31)}
        return Launch(
            argv=(*self._server, *self._arguments({**base, **parameters}, context.cache)),
            env={**self._surroundings(context.cache, context.gpus), **self.options.env, **_flags.split(parameters)[1]},
            endpoint=f"http://127.0.0.1:{port}",
        )

    def open(self, launch: Launch, context: Context) -> Session:
        model = launch.argv[launch.argv.index("--model-path") + 1]
        # Kernels are compiled into shared objects; on a CPU nothing is.
        warm = None if self.on_cpu else any((context.cache / "sglang").rglob("*.so"))
        session = ServingSession(launch, context, self.options, log.dialect(self.flags(), warm), model)
        session.model_folder = Path(model) if Path(model).is_dir() else None
        return session

    def diagnose(self, log_text: str, returncode: int | None) -> Diagnosis | None:
        return log.diagnose(log_text, returncode)

    def incomparable(self) -> str | None:
        return _logprobs.random_weights(self.options)

    def remarks(self) -> str:
        return cpu_support() if self.on_cpu else ""

    def gpus_needed(self, configuration: Configuration) -> int:
        values = {**self.options.fixed, **configuration.values}
        if values.get("device") == "cpu":
            return 0
        # Attention data parallelism divides the tensor-parallel GPUs instead of multiplying them.
        sizes = ["tp_size", "pp_size", *([] if values.get("enable_dp_attention") else ["dp_size"])]
        return math.prod(int(values.get(name) or 1) for name in sizes)

    def _arguments(self, values: Mapping[str, Value], cache: Path) -> list[str]:
        return ["--model-path", self.model_path(cache), *_flags.arguments(_flags.split(values)[0], self.flags())]

    def _default(self, cache: Path) -> Mapping[str, Value]:
        """What SGLang resolves the default configuration to, from its kept answers: a trial that asked would take 20 s longer."""
        verdict = self._preflight([Configuration(engine=self.kind)], cache)[0]
        if verdict.refused is not None:
            raise AutotuneError(f"SGLang refuses the parameters that the study fixes: {verdict.refused}")
        return verdict.resolved

    def _own_check(self, configuration: Configuration) -> Verdict:
        values = _flags.split({**self.options.fixed, **configuration.values})[0]
        unknown = next((name for name in values if name not in self.flags()), None)
        if unknown is not None:
            close = nearest(unknown, self.flags())
            hint = f" Did you mean {close!r}?" if close else ""
            return Verdict(refused=f"SGLang {self.identity().version} has no parameter {unknown!r}.{hint}")
        return Verdict(refused=args.out_of_range(values))

    def ahead(self, cache: Path) -> Ahead | None:
        if not self.options.standby or (self.on_cpu and self.options.standby == "auto"):
            return None
        imported = (*(("stood_in",) if self.on_cpu else ()), *_IMPORTED)
        return Ahead(
            head=self._server,
            modules=imported,
            env={**self._surroundings(cache), **self.options.env},
            late=("SGLANG_", "SGL_"),
            spawned=Spawned(
                count=2,
                modules=(*imported, "sglang.srt.managers.scheduler", "sglang.srt.managers.detokenizer_manager"),
                env=_SET_FOR_SPAWNED,
                late=("SGLANG_", "SGL_", "NCCL_", "PROMETHEUS_"),
            ),
            insist=self.options.standby is True,
        )

    @property
    def _server(self) -> tuple[str, ...]:
        """How the command of every launch begins."""
        return (self.python, *((str(cpu.LAUNCHER),) if self.on_cpu else _SERVER))

    def _surroundings(self, cache: Path, gpus: Sequence[int] = ()) -> dict[str, str]:
        """Variables every trial gets: kernel caches shared between trials, its own GPUs, no network for local models."""
        # /health would generate a token at each call; plain, it answers 503 until the warm-up is done, then 200.
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", "PYTHONUNBUFFERED": "1", **self._offline()}
        if self.on_cpu:
            return {**env, **cpu.ENVIRONMENT}
        caches = {name: str(cache / "sglang" / folder) for name, folder in _CACHES.items()}
        return {**env, **caches, **(gpu.visible(gpus) if gpus else {})}

    def _offline(self) -> dict[str, str]:
        local = synthetic.is_synthetic(self.options.model) or Path(self.options.model).expanduser().is_dir()
        return {"HF_HUB_OFFLINE": "1"} if local else {}

    @cached_property
    def _identity(self) -> Any:
        return self._probe("identity", self.options.env)

    @cached_property
    def _known_flags(self) -> Mapping[str, Flag]:
        told = self._kept.get("flags", lambda: self._probe("flags", self._probe_environment))
        return {flag.name: flag for flag in map(args.flag, told)}

    @cached_property
    def _kept(self) -> Answers:
        return Answers(self.identity(), self.python, PROBE)

    def _answers(self, what: str, argvs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        if not argvs:
            return []
        return list(self._probe(what, self._probe_environment, json.dumps([list(argv) for argv in argvs])))

    @property
    def _probe_environment(self) -> Mapping[str, str]:
        return {**self._offline(), **self.options.env, **(cpu.ENVIRONMENT if self.on_cpu else {})}

    def _probe(self, what: str, env: Mapping[str, str], stdin: str = "") -> Any:
        told = process.run([self.python, str(PROBE), what], _PROBE_TIMEOUT_S, env, stdin=stdin)
        if told.returncode != 0:
            said = [line.strip() for line in told.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise MissingPrerequisite(f"{self.python} cannot answer for SGLang: {said[-1][:300]} ({_INSTALL}).")
        return json.loads(told.stdout)


engine = SglangEngine
