"""SGLang as an engine: its OpenAI-compatible server, on a GPU or, with documented stand-ins, on a CPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from autotune import models, process, synthetic
from autotune.engines import _sglang_args as args
from autotune.engines import _sglang_cpu as cpu
from autotune.engines import _sglang_log as log
from autotune.engines._server import Ask, Dialect, ServingSession
from autotune.engines._sglang_cpu import cpu_support
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Serves, Session, Verdict
from autotune.errors import AutotuneError, MissingPrerequisite, nearest
from autotune.trial import Configuration, Value

__all__ = ["SglangEngine", "cpu_support", "engine"]

PROBE = Path(__file__).with_name("_sglang_probe.py")
_PROBE_TIMEOUT_S = 240.0
_INSTALL = (
    "pip install sglang, or name the interpreter that has it as engine.python (on a machine without a GPU: make engine-sglang)"
)
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


class SglangEngine(Engine):
    """One SGLang server per trial."""

    kind: ClassVar[str] = "sglang"
    serves: ClassVar[Serves] = "http"

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._models: dict[str, Mapping[str, Value]] = {}

    @property
    def python(self) -> str:
        """The interpreter that has SGLang."""
        return str(self.options.python.absolute()) if self.options.python else sys.executable

    @cached_property
    def on_cpu(self) -> bool:
        """Whether the server runs on the CPU: the study says so, or there is no GPU."""
        device = self._fixed().get("device")
        return bool((device if device is not None else self._identity["device"]) == "cpu")

    def identity(self) -> Identity:
        told = self._identity
        version = told["packages"].get("sglang")
        if version is None:
            raise MissingPrerequisite(f"The engine 'sglang' needs the package sglang in {self.python}: {_INSTALL}.")
        return Identity(
            kind=self.kind,
            version=version,
            python=told["python"],
            device="cpu" if self.on_cpu else told["device"],
            packages=told["packages"],
        )

    def flags(self) -> Mapping[str, Flag]:
        return self._flags

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        model = models.locate(self.options.model, _cache())
        verdicts = [self._own_check(configuration) for configuration in configurations]
        asked = [index for index, verdict in enumerate(verdicts) if verdict.refused is None]
        argvs = [self._arguments(configurations[index], model, 30000, 0) for index in asked]
        for index, told in zip(asked, self._resolve(argvs), strict=True):
            verdicts[index] = Verdict(refused=told.get("refused"), resolved=args.by_flag(told.get("resolved", {})))
        return verdicts

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        model = models.locate(self.options.model, context.cache)
        port = process.free_port()
        entry = (str(cpu.LAUNCHER),) if self.on_cpu else ("-m", "sglang.launch_server")
        argv = (self.python, *entry, *self._arguments(configuration, model, port, context.seed))
        return Launch(argv=argv, env=self._environment(configuration, context), endpoint=f"http://127.0.0.1:{port}")

    def open(self, launch: Launch, context: Context) -> Session:
        model = launch.argv[launch.argv.index("--model-path") + 1]
        warm = None if self.on_cpu else any((context.cache / "sglang").rglob("*.so"))
        session = ServingSession(launch, context, self.options, _dialect(warm), model)
        session.model_folder = Path(model) if Path(model).is_dir() else None
        return session

    def diagnose(self, log_text: str, returncode: int | None) -> Diagnosis | None:
        return log.diagnose(log_text, returncode)

    def gpus_needed(self, configuration: Configuration) -> int:
        values = {**self._fixed(), **args.normalised(configuration.values)}
        if values.get("device") == "cpu":
            return 0
        sizes = ["tp_size", "pp_size", *(["dp_size"] if not values.get("enable_dp_attention") else [])]
        product = 1
        for name in sizes:
            product *= int(values.get(name) or 1)
        return product

    def _fixed(self) -> dict[str, Value]:
        return args.normalised(self.options.fixed)

    def _arguments(self, configuration: Configuration, model: str, port: int, seed: int) -> list[str]:
        """The server's flags: autotune's own, the study's fixed ones, coupled defaults made explicit, the configuration's."""
        values = self._parameters(configuration)
        pins = self._pins(args.normalised(configuration.values), values, model)
        return args.render({**self._base(model, port, seed), **pins, **values}, self._flags)

    def _parameters(self, configuration: Configuration) -> dict[str, Value]:
        both = {**self._fixed(), **args.normalised(configuration.values)}
        return {name: value for name, value in both.items() if not name.startswith("env.")}

    def _base(self, model: str, port: int, seed: int) -> dict[str, Value]:
        base: dict[str, Value] = {"model_path": model, "host": "127.0.0.1", "port": port, "enable_metrics": True}
        base["random_seed"] = seed % (1 << 31)
        if synthetic.is_synthetic(self.options.model):
            base["load_format"] = "dummy"
        return {**base, "device": "cpu"} if self.on_cpu else base

    def _pins(self, changed: Mapping[str, Value], values: Mapping[str, Value], model: str) -> dict[str, Value]:
        if not self.on_cpu:
            return args.pinned(values, self._default(model)) if args.moves_memory(changed) else {}
        return {name: value for name, value in _CPU_PINS.items() if name not in values}

    def _default(self, model: str) -> Mapping[str, Value]:
        """What SGLang resolves the default configuration to."""
        if model not in self._models:
            argv = args.render({**self._base(model, 30000, 0), **self._parameters(Configuration(engine=self.kind))}, self._flags)
            told = self._resolve([argv])[0]
            if "refused" in told:
                raise AutotuneError(f"SGLang refuses the parameters that the study fixes: {told['refused']}")
            self._models[model] = args.by_flag(told["resolved"])
        return self._models[model]

    def _own_check(self, configuration: Configuration) -> Verdict:
        values = self._parameters(configuration)
        unknown = next((name for name in values if name not in self._flags), None)
        if unknown is not None:
            close = nearest(unknown, self._flags)
            hint = f" Did you mean {close!r}?" if close else ""
            return Verdict(refused=f"SGLang {self._identity['packages'].get('sglang')} has no parameter {unknown!r}.{hint}")
        return Verdict(refused=args.out_of_range(values))

    def _environment(self, configuration: Configuration, context: Context) -> dict[str, str]:
        caches = context.cache / "sglang"
        # /health would generate a token at each call; plain, it answers 503 until the warm-up is done, then 200.
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", **self._offline()}
        if self.on_cpu:
            env |= cpu.ENVIRONMENT
        else:
            env |= {name: str(caches / folder) for name, folder in _CACHES.items()}
        if context.gpus:
            env |= {"CUDA_VISIBLE_DEVICES": ",".join(map(str, context.gpus)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        tuned = {name.removeprefix("env."): str(value) for name, value in configuration.values.items() if name.startswith("env.")}
        return {**env, **self.options.env, **tuned}

    def _offline(self) -> dict[str, str]:
        local = synthetic.is_synthetic(self.options.model) or Path(self.options.model).is_dir()
        return {"HF_HUB_OFFLINE": "1"} if local else {}

    @cached_property
    def _identity(self) -> Any:
        return self._probe("identity")

    @cached_property
    def _flags(self) -> Mapping[str, Flag]:
        self.identity()
        return {flag.name: flag for flag in map(args.flag, self._probe("flags"))}

    def _resolve(self, argvs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        return list(self._probe("resolve", json.dumps([list(argv) for argv in argvs]))) if argvs else []

    def _probe(self, what: str, stdin: str = "") -> Any:
        env = {**self._offline(), **self.options.env}
        if what != "identity" and self.on_cpu:
            env |= cpu.ENVIRONMENT
        told = process.run([self.python, str(PROBE), what], _PROBE_TIMEOUT_S, env, stdin=stdin)
        if told.returncode != 0:
            raise MissingPrerequisite(f"{self.python} cannot answer for SGLang: {_last_line(told.stderr)} ({_INSTALL}).")
        return json.loads(told.stdout)


def _cache() -> Path:
    """Where synthetic models are made when there is no trial yet."""
    return Path(os.environ.get("AUTOTUNE_STORE", ".autotune")) / "cache"


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _dialect(warm: bool | None) -> Dialect:
    return Dialect(
        milestones=log.MILESTONES,
        fatal=log.FATAL,
        confirm=partial(_confirm, warm),
        diagnose=log.diagnose,
        reset="/flush_cache?timeout=5",
    )


def _confirm(warm: bool | None, ask: Ask, _log: str) -> dict[str, Value]:
    """What the running server says about itself; what it does not tell is left out."""
    facts: dict[str, Value] = {} if warm is None else {"compile_cache": "warm" if warm else "cold"}
    info = ask("/server_info")
    if not isinstance(info, Mapping):
        return facts
    effective = args.by_flag({key: value for key, value in info.items() if key != "internal_states"})
    states: list[Mapping[str, Any]] = info.get("internal_states") or [{}]
    tokens = info.get("max_total_num_tokens") or states[0].get("memory_usage", {}).get("token_capacity")
    if isinstance(tokens, int):
        facts["kv_tokens"] = tokens
    if info.get("version"):
        facts["version"] = str(info["version"])
    return {**facts, "effective": effective}


engine = SglangEngine
