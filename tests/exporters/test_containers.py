"""Compose and Kubernetes files: as agreed (golden files), parsed by the engine, safe against what a configuration holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autotune import exporters
from autotune.engines.base import Flag, Identity
from autotune.errors import AutotuneError, InvalidInput
from autotune.exporters import _proof
from autotune.exporters.base import Figure, Winner
from autotune.secrets import redact
from autotune.trial import Configuration

GOLDEN = Path(__file__).parent / "golden"
FLAGS = {
    "enable_prefix_caching": Flag(
        name="enable_prefix_caching", option="--enable-prefix-caching", negation="--no-enable-prefix-caching", type="bool"
    ),
    "max_num_seqs": Flag(name="max_num_seqs", option="--max-num-seqs", type="int"),
}


def winner(**changes):
    parameters = {"max_model_len": 8192, "max_num_seqs": 256, "gpu_memory_utilization": 0.5, "enable_prefix_caching": False}
    return Winner(
        **{
            "study": "chat-8b",
            "trial": 26,
            "engine": Identity(kind="vllm", version="0.26.0", python="3.12.3", device="NVIDIA H200"),
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "model_path": "meta-llama/Llama-3.1-8B-Instruct",
            "configuration": Configuration(engine="vllm", values={"max_num_seqs": 256}),
            "parameters": parameters,
            "env": {"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"},
            "gpus": 2,
            "figures": (Figure(metric="output_tokens_per_s", value=6997, unit="tokens/s", low=5887, high=8315, default=6723),),
            "measured_on": "2026-11-21 on NVIDIA H200",
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def without_an_installed_engine(monkeypatch, request):
    if "engine" not in request.keywords:
        monkeypatch.setattr(_proof, "engine_of", lambda winner: FakeParser({}))


def content(name, one):
    (text,) = exporters.get(name).render(one).values()
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
@pytest.mark.parametrize("case", ["gpu", "cpu"])
def test_files_are_as_agreed(name, case):
    local = {
        "engine": Identity(kind="vllm", version="0.32.0+cpu", python="3.11.7", device="cpu"),
        "model": "synthetic:tiny",
        "model_path": "/data/models/tiny",
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "gpus": 0,
    }
    (text,) = exporters.get(name).render(winner(**(local if case == "cpu" else {}))).values()
    golden = GOLDEN / f"{name}_{case}.yaml"
    assert text == golden.read_text(), f"when the change is meant, write the new text to {golden}"


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_masking_credentials_changes_no_file_that_has_none(golden):
    """What an exporter renders is masked before it is proved and written; a Kubernetes file was broken by it."""
    assert redact(golden.read_text()) == golden.read_text()


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_kubernetes_own_schema_takes_it(kind):
    validator = pytest.importorskip("kubernetes_validate", reason="its schemas are 100 MB, so it is not installed by default")
    (document,) = (one for one in content("kubernetes", winner()) if one["kind"] == kind)
    validator.validate(document, validator.latest_version(), strict=True)


def test_gpus_are_asked_for_and_a_cpu_asks_for_none():
    pod = content("kubernetes", winner())[0]["spec"]["template"]["spec"]["containers"][0]
    assert pod["resources"]["limits"] == {"nvidia.com/gpu": 2}
    device = content("compose", winner())[0]["services"]["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == [{"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}]
    cpu = winner(engine=Identity(kind="vllm", version="0.32.0+cpu", python="3", device="cpu"), gpus=0)
    assert "resources" not in content("kubernetes", cpu)[0]["spec"]["template"]["spec"]["containers"][0]
    assert "deploy" not in content("compose", cpu)[0]["services"]["engine"]


def test_the_published_port_is_on_loopback():
    assert content("compose", winner())[0]["services"]["engine"]["ports"] == ["127.0.0.1:8000:8000"]


@pytest.mark.parametrize("nasty", ["$HOME", "$(id)", "${X:-y}", "a: b", "'", '"', "#", "- x", "\n", "yes", "{{ x }}"])
def test_no_value_is_expanded_or_breaks_the_file(nasty):
    one = winner(parameters={"chat_template": nasty}, env={"A": nasty})
    service = content("compose", one)[0]["services"]["engine"]
    doubled = nasty.replace("$", "$$")
    assert service["command"][-1].removeprefix("--chat-template=") == doubled
    assert service["environment"]["A"] == doubled
    pod = content("kubernetes", one)[0]["spec"]["template"]["spec"]["containers"][0]
    assert pod["args"][-1].removeprefix("--chat-template=") == doubled
    assert pod["env"][0] == {"name": "A", "value": doubled}


def test_the_study_cannot_move_host_port_or_model():
    one = winner(parameters={"host": "1.2.3.4", "port": 1, "model": "other", "served_model_name": "mine"})
    command = content("compose", one)[0]["services"]["engine"]["command"]
    assert "1.2.3.4" not in command
    assert "other" not in command
    assert command[command.index("--served-model-name") + 1] == "mine"


def test_names_are_dns_labels():
    one = winner(study="a.b_c-" + "x" * 58)
    name = content("kubernetes", one)[0]["metadata"]["name"]
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.endswith("-")


def test_sglang_on_a_gpu_has_an_image_and_on_a_cpu_says_what_to_do():
    engine = Identity(kind="sglang", version="0.5.9", python="3", device="NVIDIA H200")
    service = content("compose", winner(engine=engine))[0]["services"]["engine"]
    assert service["image"] == "lmsysorg/sglang:v0.5.9"
    assert service["command"][0] == "--model-path"
    with pytest.raises(AutotuneError, match="sglang_yaml"):
        exporters.get("compose").render(winner(engine=engine.model_copy(update={"device": "cpu"})))


class FakeParser:
    """Reads what `read` says, whatever it is given."""

    def __init__(self, read):
        self.read, self.seen = read, None

    def identity(self):
        return Identity(kind="vllm", version="0.26.0", python="3", device="cpu")

    def flags(self):
        return FLAGS

    def parse(self, argv):
        self.seen = list(argv)
        if isinstance(self.read, Exception):
            raise self.read
        return self.read


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_the_engine_reads_the_files_own_arguments(name, monkeypatch):
    parser = FakeParser({"chat_template": "$x"})
    monkeypatch.setattr(_proof, "engine_of", lambda winner: parser)
    one = winner(parameters={"chat_template": "$x"})
    exporter = exporters.get(name)
    assert "vllm" in exporter.prove(exporter.render(one), one).lower()
    assert parser.seen[-2:] == ["--chat-template", "$x"]


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
@pytest.mark.parametrize("read", [{"max_num_seqs": 128}, {}, AutotuneError("no such flag")])
def test_what_the_engine_reads_otherwise_is_refused(name, read, monkeypatch):
    monkeypatch.setattr(_proof, "engine_of", lambda winner: FakeParser(read))
    one = winner(parameters={"max_num_seqs": 256})
    exporter = exporters.get(name)
    with pytest.raises(InvalidInput, match=r"max_num_seqs|no such flag"):
        exporter.prove(exporter.render(one), one)


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
@pytest.mark.parametrize("text", ["", "services: 3", "a: [", "kind: Deployment"])
def test_a_file_that_was_broken_is_refused(name, text):
    exporter = exporters.get(name)
    (file,) = exporter.render(winner())
    with pytest.raises(InvalidInput):
        exporter.prove({file: text}, winner())


@pytest.mark.engine
@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_the_installed_vllms_own_parser_reads_it(name):
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    exporter, one = exporters.get(name), winner(env={})
    assert "vllm" in exporter.prove(exporter.render(one), one).lower()
