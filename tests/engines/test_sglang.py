from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import urllib.request
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune import exporters, process, resident, spaces
from autotune.distributions import Choice, Distribution, IntRange
from autotune.engines import _flags, _sglang_cpu, _sglang_log
from autotune.engines import _sglang_args as args
from autotune.engines import sglang as sglang_module
from autotune.engines.base import Context, Flag
from autotune.engines.sglang import SglangEngine
from autotune.errors import InvalidInput, MissingPrerequisite
from autotune.exporters import _proof
from autotune.exporters.base import Winner
from autotune.space import EngineSpace, Space
from autotune.trial import Configuration, FailureKind, Scalar, TrialFailed

HERE = Path(__file__).parent
PYTHON = Path(__file__).parents[2] / ".venvs" / "sglang" / "bin" / "python"
RAW = json.loads((HERE / "logs" / "sglang-flags.json").read_text())
"""What the probe told of some flags of both releases."""
RESOLVED = {"chunked_prefill_size": 8192, "cuda_graph_max_bs_decode": 256, "mem_fraction_static": 0.926, "page_size": 1}
"""What SGLang resolves on an H200."""


def known(version: str = "0.5.23") -> dict[str, Flag]:
    return {flag.name: flag for flag in map(args.flag, RAW[version])}


def engine(**options: object) -> SglangEngine:
    return SglangEngine(SglangEngine.Options(kind="sglang", model="synthetic:nano", **options))


def told(on_cpu: bool, **options: object) -> SglangEngine:
    """An engine that has been told what its probes would answer."""
    made = engine(**options)
    packages = {"sglang": "0.5.23"}
    device = "cpu" if on_cpu else "NVIDIA H200"
    made.__dict__ |= {"_identity": {"packages": packages, "python": "3.12", "device": device}, "_known_flags": known()}
    made._answers = lambda what, argvs: [{"resolved": RESOLVED} for _ in argvs]
    return made


def context(folder: Path, gpus: tuple[int, ...] = ()) -> Context:
    tag = process.make_tag(folder, "s", "0")
    return Context(study="s", trial=0, tag=tag, folder=folder, scratch=folder, cache=folder, gpus=gpus, seed=2**40 + 7)


def configuration(**values: object) -> Configuration:
    return Configuration(engine="sglang", values=values)


def words(made: SglangEngine, folder: Path, gpus: tuple[int, ...] = (), **values: object) -> dict[str, str | None]:
    """The launch's flags and their values."""
    argv = made.launch(configuration(**values), context(folder, gpus)).argv
    flags = [index for index, word in enumerate(argv) if word.startswith("--")]
    return {argv[index]: None if index + 1 in flags or index + 1 == len(argv) else argv[index + 1] for index in flags}


def draw(distribution: Distribution, random: Random) -> Scalar:
    if isinstance(distribution, Choice):
        return random.choice(distribution.values)
    if isinstance(distribution, IntRange):
        return random.randrange(distribution.low, distribution.high + 1, distribution.step)
    return random.uniform(distribution.low, distribution.high)


def test_flags_are_written_with_their_full_names():
    flags = known()
    values = {
        "page_size": 16,
        "enable_mixed_chunk": True,
        "disable_radix_cache": False,
        "cuda_graph_bs_decode": [1, 2],
        "quantization": None,
    }
    written = ["--page-size", "16", "--enable-mixed-chunk", "--cuda-graph-bs-decode", "1", "2"]
    assert _flags.arguments(values, flags) == written


@pytest.mark.parametrize("version", RAW)
def test_a_flag_is_known_by_its_own_spelling_in_every_release(version):
    flags = known(version)
    assert flags["cuda_graph_max_bs_decode"].option == "--cuda-graph-max-bs-decode"
    assert flags["tp_size"].option == "--tp-size"
    assert flags["mem_fraction_static"].low == 0.01
    assert "hrrn" in (flags["schedule_policy"].choices or ()) if version == "0.5.23" else True


@pytest.mark.parametrize("version", RAW)
def test_every_parameter_of_the_space_is_a_flag(version):
    space, flags = spaces.load("sglang"), known(version)
    for name, parameter in space.parameters.items():
        for member in getattr(parameter, "members", (name,)):
            assert member in flags, member
            choices = flags[member].choices
            if choices is not None and hasattr(parameter, "values"):
                assert {value for value in parameter.values if value is not None} <= set(choices), member


DEFAULTS = {flag.name: flag.default for flag in known().values()} | RESOLVED | {"device": "cuda"}
"""What the feasibility checks know of the default configuration on an H200."""


@pytest.mark.parametrize("name", [name for name, parameter in spaces.load("sglang").parameters.items() if parameter.tuned])
def test_no_rule_forbids_a_value_of_the_tuned_set_alone(name):
    file = spaces.load("sglang")
    parameter, random = file.parameters[name], Random(0)
    space = Space([EngineSpace(engine="sglang", parameters={name: parameter}, forbid=file.forbid)])
    for _ in range(30):
        drawn = space.decode(space.suggest(lambda _, distribution: draw(distribution, random)))
        assert space.forbidden(drawn, DEFAULTS) is None, drawn


def test_the_default_launches_with_nothing_pinned(tmp_path):
    found = words(told(on_cpu=False, fixed={"context_length": 2048}), tmp_path, gpus=(3,))
    assert "--mem-fraction-static" not in found and "--chunked-prefill-size" not in found
    assert found["--context-length"] == "2048" and found["--load-format"] == "dummy"
    assert found["--random-seed"] == "7"


def test_tuning_one_coupled_default_says_the_others(tmp_path):
    found = words(told(on_cpu=False), tmp_path, chunked_prefill_size=2048)
    assert found["--chunked-prefill-size"] == "2048"
    assert found["--mem-fraction-static"] == "0.926" and found["--cuda-graph-max-bs-decode"] == "256"


def test_a_trial_asks_nothing_that_was_asked_in_its_store(tmp_path):
    first, second = told(on_cpu=False), told(on_cpu=False)
    expected = words(first, tmp_path, chunked_prefill_size=2048)
    second._answers = lambda what, argvs: pytest.fail("asked again, which imports SGLang while a GPU waits")
    assert {**words(second, tmp_path, chunked_prefill_size=2048), "--port": None} == {**expected, "--port": None}


def test_a_limit_of_requests_also_limits_the_pinned_graphs(tmp_path):
    found = words(told(on_cpu=False), tmp_path, max_running_requests=16)
    assert found["--cuda-graph-max-bs-decode"] == "16" and found["--mem-fraction-static"] == "0.926"


def test_what_is_exported_is_what_was_launched(tmp_path):
    made = told(on_cpu=False, fixed={"schedule_policy": "lpm"})
    explicit = made.explicit(configuration(page_size=16, chunked_prefill_size=4096), tmp_path)
    launched = words(made, tmp_path, page_size=16, chunked_prefill_size=4096)
    for name, value in explicit.items():
        assert launched["--" + name.replace("_", "-")] == str(value)


def test_a_trial_of_another_machine_is_exported_as_it_ran_there(tmp_path):
    effective = {**RESOLVED, "device": "cuda", "mem_fraction_static": 0.9}
    found = told(on_cpu=True).explicit(configuration(chunked_prefill_size=4096), tmp_path, effective)
    assert found["mem_fraction_static"] == 0.9 and found["chunked_prefill_size"] == 4096
    assert "device" not in found and "max_total_tokens" not in found


def test_a_gpu_trial_sees_its_own_gpus_and_shares_caches(tmp_path):
    env = told(on_cpu=False, env={"A": "1"}).launch(configuration(**{"env.B": "2"}), context(tmp_path, (1, 2))).env
    assert env["CUDA_VISIBLE_DEVICES"] == "1,2" and env["A"] == "1" and env["B"] == "2"
    assert env["TRITON_CACHE_DIR"].startswith(str(tmp_path))
    assert "TRITON_INTERPRET" not in env


def test_stand_ins_are_used_on_a_cpu_only(tmp_path):
    cpu = told(on_cpu=True).launch(configuration(), context(tmp_path))
    gpu = told(on_cpu=False).launch(configuration(), context(tmp_path))
    assert str(_sglang_cpu.LAUNCHER) in cpu.argv and cpu.env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert gpu.argv[1:3] == ("-m", "sglang.launch_server") and "SGLANG_USE_CPU_ENGINE" not in gpu.env


def test_a_cpu_pool_never_follows_free_memory(tmp_path):
    assert words(told(on_cpu=True), tmp_path)["--max-total-tokens"] == "65536"
    assert words(told(on_cpu=True, fixed={"max_total_tokens": 4096}), tmp_path)["--max-total-tokens"] == "4096"


def test_doctor_says_what_the_stand_ins_are():
    said = _sglang_cpu.cpu_support()
    assert "stand-in" in said and "sgl_kernel" in said and "torchvision" in said


def test_the_stand_in_imports_every_name_and_raises_when_called():
    path = _sglang_cpu.LAUNCHER.parent / "stand_in" / "sgl_kernel" / "__init__.py"
    spec = importlib.util.spec_from_file_location("stand_in_sgl_kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(NotImplementedError, match="copy_all_layer_kv_cache_cpu"):
        module.copy_all_layer_kv_cache_cpu(1, key=2)
    with pytest.raises(AttributeError):
        _ = module.__path_of_nothing__


@pytest.mark.parametrize(
    ("values", "gpus"),
    [
        ({}, 1),
        ({"tp_size": 2}, 2),
        ({"tp_size": 2, "dp_size": 2, "pp_size": 2}, 8),
        ({"tp_size": 4, "dp_size": 4, "enable_dp_attention": True}, 4),
    ],
)
def test_gpus_needed(values, gpus):
    assert engine().gpus_needed(configuration(**values)) == gpus


def test_a_cpu_trial_needs_no_gpu():
    assert engine(fixed={"device": "cpu"}).gpus_needed(configuration(tp_size=2)) == 0


def test_unknown_names_and_unchecked_ranges_are_refused_without_a_launch():
    made = told(on_cpu=True)
    made.__dict__["_answers"] = lambda what, argvs: [{"resolved": {}} for _ in argvs]
    verdicts = made.preflight(
        [configuration(page_sise=4), configuration(stream_interval=0), configuration(mem_fraction_static=1.5), configuration()]
    )
    assert "page_size" in (verdicts[0].refused or "")
    assert "stream_interval must be at least 1" in (verdicts[1].refused or "")
    assert "mem_fraction_static" in (verdicts[2].refused or "")
    assert verdicts[3].refused is None


@given(
    st.dictionaries(
        st.sampled_from(sorted(args.OWN_RANGES)), st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none()
    )
)
def test_ranges_answer_any_value(values):
    said = args.out_of_range(values)
    assert said is None or said.endswith(".")


def test_resolved_graph_sizes_stand_under_their_flags():
    config = {
        "decode": {"backend": "full", "max_bs": 256, "bs": [1, 2]},
        "prefill": {"backend": "disabled", "max_bs": None, "bs": None},
    }
    found = args.by_flag({"cuda_graph_config": config, "cuda_graph_max_bs_decode": None, "page_size": 1})
    assert found["cuda_graph_max_bs_decode"] == 256 and found["cuda_graph_backend_prefill"] == "disabled"
    assert found["page_size"] == 1 and "cuda_graph_max_bs_prefill" not in found


DIAGNOSES = {
    "sglang-fp8-kv": (-9, FailureKind.INVALID_CONFIG, "CPU FP8 KV cache requires Intel AMX support."),
    "sglang-unknown-flag": (2, FailureKind.INVALID_CONFIG, "unrecognized arguments: --bogus-flag 1"),
    "sglang-cuda-no-room-for-kv": (-9, FailureKind.OUT_OF_MEMORY, "Not enough memory"),
    "sglang-cuda-oom-capture": (-9, FailureKind.OUT_OF_MEMORY, "CUDA out of memory"),
    "sglang-cuda-decode-oom": (-9, FailureKind.OUT_OF_MEMORY, "Decode out of memory"),
}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_a_log_says_why(name):
    returncode, kind, evidence = DIAGNOSES[name]
    found = _sglang_log.diagnose((HERE / "logs" / f"{name}.log").read_text(), returncode)
    assert found is not None and found.kind is kind and found.advice
    assert any(evidence in line for line in found.evidence)
    assert not any("Ignore import error" in line for line in found.evidence)


def test_a_healthy_log_says_nothing():
    log = "[2026-11-21 12:50:55] The server is fired up and ready to roll!\n[2026-11-21 12:50:55] Prefill batch, #new-seq: 1\n"
    assert _sglang_log.diagnose(log, 0) is None


CHILD = "[2026-11-21 12:50:55] Subprocess scheduler_0 (pid=7) crashed with exit code {}. Triggering SIGQUIT for cleanup...\n"
QUIT = "[2026-11-21 12:50:55] SIGQUIT received. signum=3, frame=None. It usually means one child failed.\n"


@pytest.mark.parametrize("log", ["[2026-11-21 12:50:55] Prefill batch, #new-seq: 1\n", CHILD.format(-9) + QUIT])
def test_an_unexplained_kill_is_not_called_the_configurations_fault(log):
    """Nothing is said of it, so that it counts as any other engine's: the machine's the first time."""
    assert _sglang_log.diagnose(log, -9) is None


@pytest.mark.parametrize(
    "log", [CHILD.format(-11) + QUIT, QUIT, "[2026-11-21 12:50:55] Received sigquit from a child process. It usually means ...\n"]
)
def test_that_it_killed_itself_over_a_dead_child_is_no_kill_from_outside(log):
    found = _sglang_log.diagnose(log, -9)
    assert found is not None and found.kind is FailureKind.CRASHED and log.splitlines()[0].endswith(found.evidence[0])


@given(st.text())
def test_any_log_can_be_read(text):
    _sglang_log.diagnose(text, -9)


def winner(**parameters: object) -> Winner:
    return Winner(
        study="s",
        trial=3,
        engine=told(on_cpu=False).identity(),
        model="synthetic:nano",
        model_path="/models/nano",
        configuration=configuration(),
        parameters=parameters,
        interpreter=PYTHON,
    )


@pytest.mark.parametrize("folder", ["sglang/srt", "sglang/srt/utils", "sglang"])
def test_what_reads_config_files_is_found_in_either_release(tmp_path, monkeypatch, folder):
    """0.5.17 has it beside server_args, later releases below utils; an H200's 0.5.17 failed its exports for want of this."""
    (tmp_path / "sglang" / "srt" / "utils").mkdir(parents=True)
    (tmp_path / folder / "server_args_config_parser.py").write_text("class ConfigArgumentMerger: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.spec_from_file_location("probe", sglang_module.PROBE)
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    if folder == "sglang":
        with pytest.raises(ImportError, match="no parser of --config files"):
            probe.config_merger()
    else:
        assert probe.config_merger().__name__ == "ConfigArgumentMerger"
    for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
        del sys.modules[name]


def test_the_yaml_has_hyphens_and_only_switches_that_are_on(monkeypatch):
    monkeypatch.setattr(_proof, "flags_of", lambda engine: {})
    exporter = exporters.get("sglang_yaml")
    text = exporter.render(winner(page_size=16, enable_mixed_chunk=True, disable_radix_cache=False, quantization=None))[
        "sglang.yaml"
    ]
    assert "page-size: 16" in text and "enable-mixed-chunk: true" in text
    assert "disable-radix-cache" not in text and "quantization" not in text and "page_size" not in text


def test_the_yaml_never_leaves_out_what_would_be_on_without_it(monkeypatch):
    """SGLang's file has no word for it: left out, the launch would run with what its own default comes to."""
    flag = Flag(name="enable_x", option="--enable-x", negation="--no-enable-x", type="bool")
    monkeypatch.setattr(_proof, "flags_of", lambda engine: {"enable_x": flag})
    (text,) = exporters.get("sglang_yaml").render(winner(enable_x=False)).values()
    assert "enable-x: false" in text


installed = pytest.mark.skipif(
    not PYTHON.exists(), reason="SGLang is not installed here; the line that installs it: make engine-sglang"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def real(store, monkeypatch) -> SglangEngine:
    monkeypatch.setenv("AUTOTUNE_STORE", str(store))
    fixed = {"device": "cpu", "context_length": 1024, "max_total_tokens": 16384}
    return engine(python=PYTHON, fixed=fixed, start_timeout_s=180)


def opened(made: SglangEngine, folder: Path, store: Path, **values: object):
    here = context(folder).model_copy(update={"cache": store / "cache"})
    return made.open(made.launch(configuration(**values), here), here)


@pytest.mark.engine
@installed
def test_the_installed_parser_is_asked(real):
    identity = real.identity()
    assert identity.device == "cpu" and identity.version in identity.packages.values()
    assert len(real.flags()) > 400
    good, bad, worse = real.preflight(
        [configuration(page_size=16), configuration(page_size=16, chunked_prefill_size=1000), configuration(schedule_policy="best")]
    )
    assert good.refused is None and good.resolved["page_size"] == 16 and good.resolved["cuda_graph_max_bs_decode"]
    assert "divisible by page_size" in (bad.refused or "") and "invalid choice" in (worse.refused or "")


@pytest.mark.engine
@installed
def test_a_file_that_would_launch_something_else_is_refused(real):
    one = winner(enable_tf32_matmul=False, device="cpu")
    exporter = exporters.get("sglang_yaml")
    with pytest.raises(InvalidInput, match="enable_tf32_matmul"):
        exporter.prove(exporter.render(one), one)


CPU_CANNOT = {"attention_backend", "sampling_backend", "cuda_graph_backend_prefill", "cuda_graph_max_bs_prefill", "quantization"}
"""Parameters whose values need a GPU or packages that the CPU environment lacks."""


def draws(count: int) -> list[Configuration]:
    """Random configurations over the whole shipped space that none of its rules forbids."""
    file, random = spaces.load("sglang"), Random(5)
    parameters = {name: parameter for name, parameter in file.parameters.items() if name not in CPU_CANNOT}
    space = Space([EngineSpace(engine="sglang", parameters=parameters, forbid=file.forbid, fixed={"device": "cpu"})])

    drawn = (space.decode(space.suggest(lambda _, distribution: draw(distribution, random))) for _ in range(1000 * count))
    return list(itertools.islice((one for one in drawn if space.forbidden(one) is None), count))


@pytest.mark.engine
@installed
def test_what_no_rule_forbids_is_accepted_by_sglangs_own_check(real):
    drawn = draws(40)
    assert len(drawn) == 40
    refusals = {verdict.refused for verdict in real.preflight(drawn)}
    assert refusals == {None}


@pytest.mark.engine
@installed
def test_the_exported_yaml_is_read_back_by_sglang(real):
    exporter = exporters.get("sglang_yaml")
    won = winner(page_size=16, enable_mixed_chunk=True, disable_radix_cache=False, schedule_conservativeness=0.3, device="cpu")
    assert "5 parameters" in exporter.prove(exporter.render(won), won)
    broken = {"sglang.yaml": exporter.render(won)["sglang.yaml"].replace("page-size: 16", "page-size: 32")}
    with pytest.raises(InvalidInput, match="another value"):
        exporter.prove(broken, won)


@pytest.mark.engine
@installed
def test_the_exported_shell_line_is_read_back_by_sglang(real):
    exporter = exporters.get("shell")
    won = winner(page_size=16, enable_mixed_chunk=True, chunked_prefill_size=-1, cuda_graph_bs_decode=[1, 2], device="cpu")
    assert "5 parameters" in exporter.prove(exporter.render(won), won)


@pytest.mark.engine
@installed
def test_a_real_server_serves_and_goes_away(real, tmp_path, store, complete):
    with opened(real, tmp_path, store, page_size=16, enable_mixed_chunk=True) as session:
        facts = session.wait_ready()
        assert facts["kv_tokens"] == 16384 and facts["version"] == real.identity().version
        assert facts["effective"]["page_size"] == 16 and facts["effective"]["max_running_requests"] > 0
        assert facts["seconds"]["imports"] > 0
        assert complete(session, [5, 6, 7] * 20, 8) == 8
        assert session.reset_caches()
        with urllib.request.urlopen(f"{session.endpoint}/metrics", timeout=10) as answer:
            assert b"sglang:generation_tokens_total" in answer.read()
        session.check_alive()
        mapped = resident.nameless_segments(one.pid for one in session._process.members())
    stopped = session.stop()
    assert stopped["killed"] > 0 and "survivors" not in stopped, "SGLang lingers, so it is killed"
    assert mapped and not mapped & set(Path("/dev/shm").iterdir()), "and what it leaves behind then is removed"


@pytest.mark.engine
@installed
def test_a_value_that_the_scheduler_refuses_is_an_invalid_configuration(real, tmp_path, store):
    with opened(real, tmp_path, store, kv_cache_dtype="fp8_e4m3") as session, pytest.raises(TrialFailed) as failure:
        session.wait_ready()
    assert failure.value.failed.kind is FailureKind.INVALID_CONFIG
    assert "FP8 KV cache" in " ".join(failure.value.failed.evidence)


@pytest.mark.skipif(importlib.util.find_spec("sglang") is not None, reason="SGLang is installed beside the tuner here.")
def test_a_missing_engine_is_answered_with_the_line_that_installs_it():
    with pytest.raises(MissingPrerequisite, match="make engine-sglang"):
        engine(python=Path(sys.executable)).identity()
