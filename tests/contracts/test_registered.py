"""What every registered engine, workload, exporter and executor must do, whoever wrote it: one test, all that are found."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
from pydantic import ValidationError

from autotune import engines, executors, exporters, registry, spaces, workloads
from autotune.engines.base import Engine, EngineOptions
from autotune.executors.base import Executor
from autotune.exporters.base import Exporter
from autotune.workloads.base import Workload, WorkloadOptions

SHIPPED = [kind for kind in engines.kinds() if engines.get(kind).__module__.startswith("autotune.")]
HEAVY = ("torch", "vllm", "sglang", "trl", "verl", "transformers", "ray", "mlflow", "optuna", "pandas")


@pytest.mark.parametrize("kind", engines.kinds())
def test_an_engine_answers_to_its_name_and_refuses_options_it_does_not_know(kind):
    found = engines.get(kind)
    assert issubclass(found, Engine) and found.kind == kind
    assert found.serves in ("http", "training", "recorded")
    assert issubclass(found.Options, EngineOptions)
    assert found.Options.model_config["frozen"] and found.Options.model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", SHIPPED)
def test_an_engine_has_a_search_space_and_a_workload_that_can_drive_it(kind):
    assert any(kind == spaces.load(name).engine for name in spaces.available())
    assert any(workloads.get(name).needs == engines.get(kind).serves for name in workloads.kinds())


@pytest.mark.parametrize("kind", [kind for kind in SHIPPED if kind != "recorded"])
def test_an_interpreter_that_is_not_there_is_one_mistake_at_its_place(kind, tmp_path):
    options = {"kind": kind, "model": "synthetic:tiny", "python": tmp_path / "no-python"}
    engine = engines.get(kind)(engines.get(kind).Options.model_validate(options))
    assert [mistake.path for mistake in engine.check() if mistake.path == "python"] == ["python"]


@pytest.mark.parametrize("kind", SHIPPED)
def test_naming_an_engine_imports_nothing_heavy(kind):
    code = f"import sys; from autotune import engines; engines.get({kind!r}); print(*(n for n in {HEAVY!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


@pytest.mark.parametrize("name", workloads.kinds())
def test_a_workload_answers_to_its_name(name):
    found = workloads.get(name)
    assert issubclass(found, Workload) and found.kind == name
    assert issubclass(found.Options, WorkloadOptions)
    with pytest.raises(ValidationError):
        found.Options.model_validate({"kind": name, "no_such_option": 1})


@pytest.mark.parametrize("name", exporters.names())
def test_an_exporter_answers_to_its_name_and_knows_its_engines(name):
    found = exporters.get(name)
    assert isinstance(found, Exporter) and found.name == name
    assert found.engines and set(found.engines) <= set(engines.kinds())


@pytest.mark.parametrize("kind", SHIPPED)
def test_what_an_engine_measured_can_be_exported(kind):
    can = [name for name in exporters.names() if kind in exporters.get(name).engines]
    assert bool(can) == (kind != "recorded"), "a replay launches nothing, and everything else must be launchable"


@pytest.mark.parametrize("name", executors.names())
def test_an_executor_answers_to_its_name(name):
    pytest.importorskip("ray") if name == "ray" else None
    found = registry.find("autotune.executors", name, "executor")
    assert issubclass(found, Executor) and found.kind == name


@pytest.mark.parametrize("package", ["engines", "workloads", "exporters", "executors"])
def test_every_implementation_says_what_it_is(package):
    names = registry.names(f"autotune.{package}")
    assert names
    for name in names:
        module = importlib.import_module(registry.find(f"autotune.{package}", name, package.removesuffix("s")).__module__)
        assert inspect.getdoc(module), module.__name__
