"""What a model's config.json says about its size: layers, heads, parameters, bytes of weights and of KV cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune import synthetic
from autotune.errors import Mistake, NotFound
from autotune.trial import Frozen, digest_of

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4,
    "float": 4,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
    "int8": 1,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "int4": 0.5,
    "nvfp4": 0.5,
}
"""Bytes of one element, by the names that configs and engines use; block scales of quantised formats not counted."""

_COUNTED = {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"}
"""Model types whose parameters the formula below counts exactly."""


class ModelFacts(Frozen):
    """A decoder's shape. `parameters` is None for an architecture that is not counted here."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    dtype: str
    parameters: int | None = None
    intermediate: int | None = None
    """Width of the feed-forward layer, of one expert's where there are experts."""
    latent_kv: int | None = None
    """Elements cached per token and layer by multi-head latent attention; None for ordinary attention."""

    @property
    def counted(self) -> bool:
        """Whether weights, KV cache and activations follow from this shape: `weights_gib` is known, and attention is ordinary."""
        known = self.parameters is not None and self.intermediate is not None and self.dtype in DTYPE_BYTES
        return known and self.latent_kv is None

    @property
    def weights_gib(self) -> float:
        """Size of the unquantised weights over all ranks. Only for a model that is counted."""
        assert self.parameters is not None
        return self.parameters * self.dtype_bytes / 2**30

    @property
    def dtype_bytes(self) -> float:
        """Bytes of one weight as the checkpoint stores it."""
        return DTYPE_BYTES[self.dtype]

    def kv_bytes_per_token(self, dtype: str = "auto") -> float:
        """Bytes of KV cache one token takes on all devices together.

        2 (key and value) x layers x KV heads x head dim x bytes: Kwon et al., "Efficient Memory Management for Large
        Language Model Serving with PagedAttention", SOSP 2023, section 3. Latent attention caches one vector per layer
        instead (DeepSeek-V2, arXiv 2405.04434, section 2.1). `auto`, and a type that is not in the table, count as the
        weights' own.
        """
        size = DTYPE_BYTES.get(dtype, self.dtype_bytes)
        if self.latent_kv is not None:
            return self.layers * self.latent_kv * size
        return 2 * self.layers * self.kv_heads * self.head_dim * size


def shared_cache() -> Path:
    """The cache of the store in use (AUTOTUNE_STORE, else ./.autotune), for what is asked of an engine before any trial."""
    return Path(os.environ.get("AUTOTUNE_STORE", ".autotune")).resolve() / ".cache"


def locate(model: str, cache: Path) -> str:
    """What an engine is given for a study's model: the folder of a synthetic model (made if needed), else the name itself.

    Raises NotFound for an unknown synthetic name, or for a path that holds no model.
    """
    if synthetic.is_synthetic(model):
        return str(synthetic.make(model, cache))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NotFound(f"The folder {model} holds no config.json, so it is not a model that an engine can load.")
        return str(folder.resolve())
    if model.startswith(("/", "./", "../", "~")):
        raise NotFound(f"There is no model folder {model}.")
    return model


def faults(model: str) -> Iterator[Mistake]:
    """What is wrong with a study's model as far as this machine alone can tell; nothing is made or downloaded."""
    if not model.strip():
        yield Mistake("model", "This is empty; name a synthetic model, a folder or a hub name.")
        return
    try:
        if synthetic.is_synthetic(model):
            synthetic.config(model)
        else:
            locate(model, Path())
    except NotFound as error:
        yield Mistake("model", str(error))


def facts(model: str) -> ModelFacts | None:
    """The facts of a study's model without touching the network.

    None for a hub name that was never downloaded here, and for a model that a training engine makes for itself.
    Raises NotFound for an unknown synthetic name.
    """
    if model.startswith(synthetic.TRAINABLE):
        return None
    if synthetic.is_synthetic(model):
        return facts_of(synthetic.config(model))
    path = _config_file(model)
    return facts_of(json.loads(path.read_text())) if path else None


def digest(model: str) -> str:
    """Identifies a model's content without reading its weights: its configuration, and its files' names, sizes and times.

    A hub name that was never downloaded here, and a model that a training engine makes for itself, are identified by name alone.
    """
    if synthetic.is_synthetic(model) and not model.startswith(synthetic.TRAINABLE):
        return digest_of(synthetic.config(model))
    path = _config_file(model)
    if path is None:
        return digest_of({"model": model})
    files = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in path.parent.iterdir() if file.is_file())
    return digest_of({"config": path.read_text(), "files": files})


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """The facts in the values of a config.json; a multimodal model's are those of its `text_config`."""
    text: Mapping[str, Any] = {**config, **config.get("text_config", {})}
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    latent = text["kv_lora_rank"] + text["qk_rope_head_dim"] if text.get("kv_lora_rank") else None
    return ModelFacts(
        layers=text["num_hidden_layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab=text["vocab_size"],
        max_positions=text["max_position_embeddings"],
        dtype=str(text.get("dtype") or text.get("torch_dtype") or "float32").removeprefix("torch."),
        parameters=_parameters(text),
        intermediate=text.get("moe_intermediate_size") or text.get("intermediate_size"),
        latent_kv=latent,
    )


def _parameters(text: Mapping[str, Any]) -> int | None:
    """Embeddings + layers x (attention + MLP + norms) + final norm, + the output head unless it is tied."""
    if text.get("model_type") not in _COUNTED:
        return None
    hidden, vocab = text["hidden_size"], text["vocab_size"]
    embeddings = vocab * hidden * (1 if text.get("tie_word_embeddings") else 2)
    layer = _attention_parameters(text) + _mlp_parameters(text) + 2 * hidden
    return int(embeddings + text["num_hidden_layers"] * layer + hidden)


def _attention_parameters(text: Mapping[str, Any]) -> int:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    dim = text.get("head_dim") or hidden // heads
    query, key_value = heads * dim, 2 * (text.get("num_key_value_heads") or heads) * dim
    weights = hidden * (2 * query + key_value)
    bias = query + key_value if text["model_type"] == "qwen2" or text.get("attention_bias") else 0
    output_bias = hidden if text.get("attention_bias") else 0
    head_norms = 2 * dim if text["model_type"].startswith("qwen3") else 0
    return int(weights + bias + output_bias + head_norms)


def _mlp_parameters(text: Mapping[str, Any]) -> int:
    hidden, experts = text["hidden_size"], text.get("num_experts") or text.get("num_local_experts") or 0
    if not experts:
        return int(3 * hidden * text["intermediate_size"])
    width = text.get("moe_intermediate_size") or text["intermediate_size"]
    return int(experts * 3 * hidden * width + hidden * experts)


def _config_file(model: str) -> Path | None:
    """The config.json of a local folder or of the newest snapshot in the hub cache."""
    local = Path(model).expanduser() / "config.json"
    if local.is_file():
        return local
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = hub.joinpath(f"models--{model.replace('/', '--')}", "snapshots").glob("*/config.json")
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
