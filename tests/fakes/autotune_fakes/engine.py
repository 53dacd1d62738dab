"""The fake server as an engine, through the same serving session that real servers use."""

import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from autotune import process
from autotune.engines import _logprobs
from autotune.engines._server import Dialect, ServingSession
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Session
from autotune.errors import MachineUnusable
from autotune.standby import Ahead
from autotune.trial import Configuration, FailureKind

SERVER = Path(__file__).with_name("server.py")
HEAD = (sys.executable, "-S", "-E", str(SERVER))
FLAGS = {
    "speed": Flag(name="speed", option="--speed", type="int", default=100, low=1),
    "mode": Flag(name="mode", option="--mode", default="ok"),
    "kv": Flag(name="kv", option="--kv", default="auto"),
    "start_s": Flag(name="start_s", option="--start-s", type="float", default=0.05),
}
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError")
_REFUSED = re.compile(r"^ValueError|unrecognized arguments")


class FakeOptions(EngineOptions):
    model: str = "fake"
    port: int | None = None
    standby: bool = False
    """Import `heavy` ahead of each trial; every trial imports it then."""


def diagnose(log: str, returncode: int | None) -> Diagnosis | None:
    for pattern, kind in ((_OUT_OF_MEMORY, FailureKind.OUT_OF_MEMORY), (_REFUSED, FailureKind.INVALID_CONFIG)):
        found = tuple(line for line in log.splitlines() if pattern.search(line))
        if found:
            return Diagnosis(kind=kind, evidence=found, advice="")
    return None


DIALECT = Dialect(
    milestones=(("core", re.compile("ready")),),
    fatal=re.compile(r"OutOfMemoryError|^ValueError|EngineCore died"),
    confirm=lambda ask, log: {"effective": {"speed": ask("/speed")["speed"]}, "version": "1", "kv_tokens": 1000},
    diagnose=diagnose,
    reset="/health",
    answer=_logprobs.of_vllm,
)


class FakeEngine(Engine):
    kind = "fake"
    serves = "http"
    Options = FakeOptions
    options: FakeOptions

    def identity(self) -> Identity:
        """What FAKE_VERSION says is installed, told once, as by engines that have to ask for it."""
        return self._identity

    @cached_property
    def _identity(self) -> Identity:
        version = os.environ.get("FAKE_VERSION", "1")
        return Identity(kind="fake", version=version, python=sys.version.split()[0], device="cpu")

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        if "FAKE_BROKEN" in os.environ:
            raise MachineUnusable("This machine is broken.")
        port = self.options.port or process.free_port()
        values = {**self.options.fixed, **configuration.values}
        env = {name.removeprefix("env."): str(value) for name, value in values.items() if name.startswith("env.")}
        flags = [
            part
            for name, value in values.items()
            if not name.startswith("env.")
            for part in ("--" + name.replace("_", "-"), str(value))
        ]
        heavy = ("--imports", "heavy") if self.options.standby else ()
        argv = (*HEAD, "--port", str(port), *flags, *heavy)
        return Launch(argv=argv, env={**self.options.env, **env}, endpoint=f"http://127.0.0.1:{port}")

    def ahead(self, cache: Path) -> Ahead | None:
        if not self.options.standby:
            return None
        return Ahead(HEAD, modules=("heavy", "not_there"), env=self.options.env, late=("FAKE_",), insist=True)

    def open(self, launch: Launch, context: Context) -> Session:
        return ServingSession(launch, context, self.options, DIALECT, "fake")

    def flags(self) -> Mapping[str, Flag]:
        return FLAGS

    def incomparable(self) -> str | None:
        return _logprobs.random_weights(self.options)

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        return diagnose(log, returncode)

    def gpus_needed(self, configuration: Configuration) -> int:
        return 0


engine = FakeEngine
