"""The shell script and vLLM's YAML file: as agreed (golden files), read back by vLLM's own parser, quoted safely."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import exporters
from autotune.engines.base import Flag, Identity
from autotune.errors import InvalidInput
from autotune.exporters import _proof, shell
from autotune.exporters.base import Figure, Winner
from autotune.trial import Configuration

GOLDEN = Path(__file__).parent / "golden"
FLAGS = {
    "enable_prefix_caching": Flag(
        name="enable_prefix_caching", option="--enable-prefix-caching", negation="--no-enable-prefix-caching", type="bool"
    ),
    "enforce_eager": Flag(name="enforce_eager", option="--enforce-eager", negation="--no-enforce-eager", type="bool"),
    "cudagraph_capture_sizes": Flag(name="cudagraph_capture_sizes", option="--cudagraph-capture-sizes", type="list"),
    "speculative_config": Flag(name="speculative_config", option="--speculative-config", type="json"),
}
PARAMETERS = {
    "max_num_seqs": 256,
    "gpu_memory_utilization": 0.5,
    "enable_prefix_caching": False,
    "enforce_eager": True,
    "cudagraph_capture_sizes": [1, 2, 4],
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
    "max_model_len": 2048,
}
GPU = Identity(kind="vllm", version="0.26.0", python="3.12.3", device="NVIDIA H200")
CPU = Identity(kind="vllm", version="0.32.0", python="3.11.7", device="cpu")


def winner(engine=GPU, **changes):
    return Winner(
        **{
            "study": "chat-8b",
            "trial": 26,
            "engine": engine,
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "model_path": "meta-llama/Llama-3.1-8B-Instruct",
            "configuration": Configuration(engine="vllm", values={"max_num_seqs": 256}),
            "parameters": PARAMETERS,
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1"} if engine is CPU else {},
            "figures": (Figure(metric="output_tokens_per_s", value=6997, unit="tokens/s", low=5887, high=8315, default=6723),),
            "measured_on": f"2026-11-21 on {engine.device}",
            **changes,
        }
    )


@pytest.fixture
def without_an_installed_engine(monkeypatch):
    monkeypatch.setattr(_proof, "flags_of", lambda engine: FLAGS)


@pytest.mark.parametrize("name", ["shell", "vllm_yaml"])
@pytest.mark.parametrize(("case", "engine"), [("gpu", GPU), ("cpu", CPU)])
def test_files_are_as_agreed(name, case, engine, without_an_installed_engine):
    ((file, text),) = exporters.get(name).render(winner(engine)).items()
    golden = GOLDEN / f"{Path(file).stem}_{case}{Path(file).suffix}"
    assert text == golden.read_text()


@pytest.mark.parametrize(
    ("name", "kind"), [("shell", "vllm"), ("shell", "sglang"), ("vllm_yaml", "vllm"), ("sglang_yaml", "sglang")]
)
def test_the_environment_that_was_measured_is_named_where_it_is_not_the_tuners(name, kind, monkeypatch):
    """The `python` or `vllm` that a shell finds first may be that of an environment without the engine."""
    monkeypatch.setattr(_proof, "flags_of", lambda engine: {})
    monkeypatch.setattr(_proof, "engine_of", lambda winner: None)
    one = winner(GPU.model_copy(update={"kind": kind}), interpreter=Path("/env x/bin/python"), parameters={})
    (text,) = exporters.get(name).render(one).values()
    assert "PATH='/env x/bin':\"$PATH\" " in text
    assert not [line for line in text.splitlines() if "PATH=" in line and not line.startswith("#")]


@pytest.mark.parametrize("name", ["shell", "vllm_yaml", "sglang_yaml", "compose", "kubernetes", "trl_yaml", "verl_overrides"])
def test_a_note_of_several_lines_is_a_comment_in_all_of_them(name, monkeypatch):
    """The reason of a rule, which a caution tells, may be a block of the study's YAML: its second line would be run."""
    monkeypatch.setattr(_proof, "flags_of", lambda engine: FLAGS)
    kind = exporters.get(name).engines[0]
    said = winner(GPU.model_copy(update={"kind": kind}), cautions=("It is forbidden: slow\ntouch hurt: [\n",), parameters={})
    plain = said.model_copy(update={"cautions": ("It is forbidden: slow",)})
    with_it, without = exporters.get(name).render(said), exporters.get(name).render(plain)
    for file, text in with_it.items():
        left = [line for line in text.splitlines() if line not in ("# touch hurt: [", "# ")]
        assert left == without[file].splitlines()
    assert any("# touch hurt: [" in text for text in with_it.values())


def test_an_engine_that_is_not_installed_still_gets_a_script(monkeypatch):
    monkeypatch.setattr(_proof, "flags_of", lambda engine: {})
    (text,) = exporters.get("shell").render(winner()).values()
    words = shell.command(text)
    assert "--no-enable-prefix-caching" in words
    assert words[words.index("--cudagraph-capture-sizes") + 1 :][:3] == ["1", "2", "4"]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=40))
def test_no_value_can_leave_its_quotes(value):
    one = winner(parameters={}, env={"SOME_VARIABLE": value}, model_path=f"/models/{value}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_proof, "flags_of", lambda engine: FLAGS)
        (text,) = exporters.get("shell").render(one).values()
    assert shell.command(text.replace("exec vllm", 'exec "$SOME_VARIABLE"')) == [value, "serve", f"/models/{value}"]


def test_a_broken_script_is_refused():
    with pytest.raises(InvalidInput, match="shell refuses"):
        shell.command("if true; then\n")


@pytest.mark.parametrize(
    ("parsed", "value", "equal"),
    [
        (0.5, 0.5, True),
        (256, 256.0, True),
        ("256", 256, True),
        (None, False, True),
        (True, False, False),
        (None, 256, False),
        ([1, 2], (1, 2), True),
        ([1, 2], [2, 1], False),
    ],
)
def test_what_counts_as_the_same_value(parsed, value, equal):
    assert _proof.same(parsed, value) is equal


@pytest.mark.engine
def test_vllm_reads_back_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path))
    one = winner(CPU, model="synthetic:nano", model_path="/models/a model's folder")
    for name in ("shell", "vllm_yaml"):
        exporter = exporters.get(name)
        files = exporter.render(one)
        assert "all 7 parameters" in exporter.prove(files, one)
        ((file, text),) = files.items()
        with pytest.raises(InvalidInput, match=r"max_num_seqs.*another value"):
            exporter.prove({file: text.replace("256", "257")}, one)
        with pytest.raises(InvalidInput, match="parser refuses"):
            exporter.prove({file: text.replace("max-num-seqs", "max-num-seqz")}, one)


def test_yaml_is_flat_and_hyphenated(without_an_installed_engine):
    (text,) = exporters.get("vllm_yaml").render(winner()).values()
    content = yaml.safe_load(text)
    assert content["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert content["enable-prefix-caching"] is False
    assert not any("_" in key for key in content)
