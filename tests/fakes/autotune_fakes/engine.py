"""The fake server as an engine, through the same serving session that real servers use."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from autotune import process
from autotune.engines._server import Dialect, ServingSession
from autotune.engines.base import Context, Diagnosis, Engine, EngineOptions, Flag, Identity, Launch, Session
from autotune.trial import Configuration, FailureKind

SERVER = Path(__file__).with_name("server.py")
FLAGS = {
    "speed": Flag(name="speed", option="--speed", type="int", default=100, low=1),
    "mode": Flag(name="mode", option="--mode", default="ok"),
    "start_s": Flag(name="start_s", option="--start-s", type="float", default=0.05),
}
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError")
_REFUSED = re.compile(r"^ValueError|unrecognized arguments")


class FakeOptions(EngineOptions):
    model: str = "fake"
    port: int | None = None


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
)


class FakeEngine(Engine):
    kind = "fake"
    serves = "http"
    Options = FakeOptions
    options: FakeOptions

    def identity(self) -> Identity:
        return Identity(kind="fake", version="1", python=sys.version.split()[0], device="cpu")

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        port = self.options.port or process.free_port()
        values = {**self.options.fixed, **configuration.values}
        flags = [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), str(value))]
        argv = (sys.executable, "-S", "-E", str(SERVER), "--port", str(port), *flags)
        return Launch(argv=argv, env=dict(self.options.env), endpoint=f"http://127.0.0.1:{port}")

    def open(self, launch: Launch, context: Context) -> Session:
        return ServingSession(launch, context, self.options, DIALECT, "fake")

    def flags(self) -> Mapping[str, Flag]:
        return FLAGS

    def diagnose(self, log: str, returncode: int | None) -> Diagnosis | None:
        return diagnose(log, returncode)

    def gpus_needed(self, configuration: Configuration) -> int:
        return 0


engine = FakeEngine
