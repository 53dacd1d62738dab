"""Synthetic models: an architecture's exact shape with random weights, made on this machine in seconds.

Speed and memory of a dense model do not depend on the values of its weights, so a study can run before anything is
downloaded. What random weights cannot show:

- speculative decoding: a draft guesses a random target almost never, so acceptance and its gain are meaningless;
- mixture of experts: a random router spreads tokens more evenly than a trained one, so expert imbalance is understated;
- stop tokens: the model emits them at random, so output lengths are only real when the traffic ignores them;
- prefix caching, scheduling, batching and KV-cache behaviour are as real as with the true weights.

The tokenizer is a true byte-level BPE over the full vocabulary: a space and up to three lower-case letters is one token.
"""

from __future__ import annotations

import itertools
import json
import shutil
import string
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import NotFound, StoreUnwritable, nearest
from autotune.trial import digest_of

PREFIX = "synthetic:"
TRAINABLE = "synthetic:learner-"
"""Begins the names of the models that training engines make for themselves; they have no shape here."""
_FORMAT = 1
"""Raised whenever the files made for the same shape change, so that caches are not mixed."""

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
}
_QWEN3: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
_TINY: Mapping[str, Any] = {
    **_QWEN3,
    "vocab_size": 8192,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def _shape(base: Mapping[str, Any], layers: int, hidden: int, intermediate: int, heads: int, **more: Any) -> Mapping[str, Any]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads}
    common = {
        "transformers_version": "5.0.0",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    return {**base, **common, **sizes, **more}


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "nano": _shape(_TINY, 2, 128, 256, 2, num_key_value_heads=1),
    "tiny": _shape(_TINY, 4, 256, 768, 4, num_key_value_heads=2),
    "llama-3.1-8b": _shape(_LLAMA, 32, 4096, 14336, 32),
    "llama-3.1-70b": _shape(_LLAMA, 80, 8192, 28672, 64),
    "qwen3-0.6b": _shape(_QWEN3, 28, 1024, 3072, 16, tie_word_embeddings=True),
    "qwen3-8b": _shape(_QWEN3, 36, 4096, 12288, 32),
    "qwen3-30b-a3b": _shape(
        _QWEN3,
        48,
        2048,
        6144,
        32,
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
}
"""The published config.json values of each architecture, by the name after `synthetic:`."""


def is_synthetic(model: str) -> bool:
    """Whether a study's model name asks for a synthetic model."""
    return model.startswith(PREFIX)


def config(model: str) -> Mapping[str, Any]:
    """The config.json values of `synthetic:NAME`. Raises NotFound with the nearest name."""
    name = model.removeprefix(PREFIX)
    if name not in SHAPES:
        close = nearest(name, SHAPES)
        hint = f" Did you mean {PREFIX + close!r}?" if close else ""
        known = ", ".join(PREFIX + known for known in SHAPES)
        raise NotFound(f"There is no synthetic model {model!r}; there are {known}.{hint}")
    ids = range(SHAPES[name]["vocab_size"])[-3:]
    return {**SHAPES[name], "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[2], "use_cache": True}


def make(model: str, cache: Path) -> Path:
    """The folder of `synthetic:NAME` below `cache`, made if it is not there; its name carries a digest of its content.

    Safe when several processes make the same model at once: each fills a folder of its own and one of them is renamed.
    Raises StoreUnwritable.
    """
    values = config(model)
    name = model.removeprefix(PREFIX)
    folder = cache / "models" / f"{name}-{digest_of({'format': _FORMAT, 'config': values})}"
    if not folder.is_dir():
        try:
            _make(folder, name, values)
        except OSError as error:
            raise StoreUnwritable(f"Cannot make the model {model!r} in {folder.parent}: {error.strerror}.") from error
    return folder


def _make(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        for file, content in _files(values).items():
            (draft / file).write_text(json.dumps(content))
        draft.chmod(0o755)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _files(values: Mapping[str, Any]) -> dict[str, Any]:
    special = _special_tokens(values)
    return {
        "config.json": values,
        "generation_config.json": {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": _tokenizer(values["vocab_size"], special),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": values["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **{f"{role}_token": token for role, token in zip(("bos", "eos", "pad"), special, strict=True)},
            "chat_template": "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
        },
    }


def _special_tokens(values: Mapping[str, Any]) -> dict[str, int]:
    return {f"<|{role}|>": values[f"{role}_token_id"] for role in ("bos", "eos", "pad")}


def _tokenizer(vocab_size: int, special: Mapping[str, int]) -> dict[str, Any]:
    """A byte-level BPE in the tokenizers library's file format that fills every id below `vocab_size`."""
    vocab = {symbol: number for number, symbol in enumerate(_byte_symbols())}
    merges = []
    for left, right in itertools.islice(_merges(), vocab_size - len(vocab) - len(special)):
        vocab[left + right] = len(vocab)
        merges.append([left, right])
    vocab.update(special)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **added} for token, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else a letter from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def _merges() -> Iterator[tuple[str, str]]:
    """Merges in rank order: a space and one or two letters, letter pairs inside words, then a space and ever longer words."""
    letters = string.ascii_lowercase
    yield from _words(0)
    yield from _words(1)
    yield from itertools.product(letters, letters)
    for length in itertools.count(2):
        yield from _words(length)


def _words(length: int) -> Iterator[tuple[str, str]]:
    """Merges that append a letter to a space and `length` letters."""
    letters, space = string.ascii_lowercase, chr(288)
    for stem in itertools.product(letters, repeat=length):
        yield from ((space + "".join(stem), letter) for letter in letters)
