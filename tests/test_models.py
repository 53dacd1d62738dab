"""Model shapes and their arithmetic against published figures; synthetic models as files that transformers can load."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest

from autotune import models, synthetic
from autotune.errors import NotFound, StoreUnwritable

PUBLISHED = {
    "llama-3.1-8b": (8_030_261_248, 131072),
    "llama-3.1-70b": (70_553_706_496, 327680),
    "qwen3-0.6b": (596_049_920, 114688),
    "qwen3-8b": (8_190_735_360, 147456),
    "qwen3-30b-a3b": (30_532_122_624, 98304),
}
"""Parameters as the model cards' safetensors count them; KV bytes per token in bfloat16 by hand."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_match_the_published_model(name):
    facts = models.facts(f"synthetic:{name}")
    assert (facts.parameters, facts.kv_bytes_per_token()) == PUBLISHED[name]
    assert facts.kv_bytes_per_token("fp8") == PUBLISHED[name][1] / 2


def test_an_unknown_architecture_is_not_counted():
    config = {**synthetic.config("synthetic:tiny"), "model_type": "surprise"}
    assert models.facts_of(config).parameters is None


def test_latent_attention_caches_one_vector_a_layer():
    config = {**synthetic.config("synthetic:tiny"), "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert models.facts_of(config).kv_bytes_per_token() == 4 * 576 * 2


def test_a_multimodal_models_facts_are_its_text_models():
    config = {"model_type": "wrapper", "text_config": dict(synthetic.config("synthetic:qwen3-8b"))}
    assert models.facts_of(config).parameters == PUBLISHED["qwen3-8b"][0]


@pytest.mark.parametrize(
    ("asked", "nearest"), [("synthetic:lama-3.1-8b", "synthetic:llama-3.1-8b"), ("synthetic:tinny", "synthetic:tiny")]
)
def test_an_unknown_synthetic_model_is_answered_with_the_nearest(asked, nearest):
    with pytest.raises(NotFound, match=f"no synthetic model '{asked}'.*Did you mean '{nearest}'"):
        models.facts(asked)


def test_a_model_is_made_once_and_named_by_its_content(tmp_path):
    folder = synthetic.make("synthetic:tiny", tmp_path)
    before = (folder / "config.json").stat().st_mtime_ns
    assert synthetic.make("synthetic:tiny", tmp_path) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert synthetic.make("synthetic:nano", tmp_path) != folder
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_model_that_cannot_be_kept_is_one_sentence(tmp_path):
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(StoreUnwritable, match=r"Cannot make the model 'synthetic:tiny' in .*/models: File exists\."):
        synthetic.make("synthetic:tiny", tmp_path)


def test_many_processes_make_one_model(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        folders = set(pool.map(partial(synthetic.make, cache=tmp_path), ["synthetic:nano"] * 8))
    assert len(folders) == 1
    assert [path for path in (tmp_path / "models").iterdir() if path not in folders] == []


def test_the_tokenizer_fills_the_vocabulary_and_reads_back_what_it_wrote(tmp_path):
    from tokenizers import Tokenizer

    folder = synthetic.make("synthetic:tiny", tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(config["vocab_size"]))
    assert tokenizer.id_to_token(config["eos_token_id"]) == "<|eos|>"
    for text in ("Hello there, the quick brown fox.", "ünï 你好\n\ttabs", " abc def"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(" abc abd abe").ids) == 3


def test_locating_a_model(tmp_path):
    assert models.locate("meta-llama/Llama-3.1-8B", tmp_path) == "meta-llama/Llama-3.1-8B"
    with pytest.raises(NotFound, match=r"holds no config\.json"):
        models.locate(str(tmp_path), tmp_path)
    with pytest.raises(NotFound, match="no model folder"):
        models.locate("/no/such/folder", tmp_path)
    made = synthetic.make("synthetic:nano", tmp_path)
    assert models.locate("synthetic:nano", tmp_path) == models.locate(str(made), tmp_path) == str(made)


def test_the_digest_follows_the_content(tmp_path):
    made = synthetic.make("synthetic:nano", tmp_path)
    first = models.digest(str(made))
    (made / "model.safetensors").write_bytes(b"weights")
    assert models.digest(str(made)) != first
    assert models.digest("synthetic:nano") != models.digest("synthetic:tiny")
    assert models.digest("never/downloaded") == models.digest("never/downloaded")


def test_a_downloaded_models_facts_come_from_the_hub_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(synthetic.config("synthetic:qwen3-0.6b")))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert models.facts("org/name").parameters == PUBLISHED["qwen3-0.6b"][0]
    assert models.facts("org/other") is None
