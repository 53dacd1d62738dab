"""Makes a small language model and a task that it truly learns, with no download: `make_task.py FOLDER SIZE FAMILY`.

The task: a prompt names a word, `<bos> t3 t3 :`, and every word of the answer should be of that word's class. The
tokenizer has one token a word, so that a reward is exact and training shows a rising curve within seconds on one core.
The folder holds the model, its tokenizer and `data/` for GRPO and RLOO (`prompts/`), DPO (`pairs/`) and verl (`verl/`).

Runs in the training engine's own environment and imports nothing of autotune.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", ":")
ANSWER_WORDS = 12
"""Places of an answer that the reward looks at; rewards.py divides by the same number."""
PROMPTS = 512


@dataclass(frozen=True)
class Size:
    """A model's shape and its task's width: `classes` answers exist, `named` of them are asked for."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    classes: int
    named: int = 4
    prompt_words: int = 2
    tied: bool = False
    dtype: str = "float32"


SIZES = {
    "tiny": Size(64, 2, 2, 2, 32, 256, 32, 27),
    "small": Size(256, 4, 8, 8, 32, 1024, 4096, 64),
    # The published shape of Qwen3-0.6B: speed and memory are its own, the weights are random.
    "0.6b": Size(1024, 28, 16, 8, 128, 3072, 151936, 64, prompt_words=128, tied=True, dtype="bfloat16"),
}


def tokenizer(size: Size) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"t{index}" for index in range(size.vocabulary - len(SPECIAL)))]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=4096,
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    return fast


def model(size: Size, family: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    shape = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": size.tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = {"qwen3": Qwen3Config, "llama": LlamaConfig}[family](**shape)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, size.dtype))
    made.generation_config.pad_token_id, made.generation_config.bos_token_id, made.generation_config.eos_token_id = 0, 1, 2
    return made


def examples(size: Size) -> list[dict[str, Any]]:
    """Prompts with the class that a right answer belongs to, and a right and a wrong answer for preference training."""
    draw = random.Random(0)
    words = size.vocabulary - len(SPECIAL)
    made = []
    for _ in range(PROMPTS):
        target = draw.randrange(size.named)
        right = [f"t{target}"] * ANSWER_WORDS
        wrong = [f"t{draw.randrange(words)}" for _ in range(ANSWER_WORDS)]
        prompt = " ".join(["<bos>", *[f"t{target}"] * size.prompt_words, ":"])
        made.append({"prompt": prompt, "target": target, "classes": size.classes, "right": right, "wrong": wrong})
    return made


def write_data(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    prompts = [{key: row[key] for key in ("prompt", "target", "classes")} for row in rows]
    pairs = [
        {"prompt": row["prompt"], "chosen": " " + " ".join(row["right"]), "rejected": " " + " ".join(row["wrong"])} for row in rows
    ]
    for name, table in (("prompts", prompts), ("pairs", pairs)):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    chats = [
        {
            "data_source": "learner",
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "ability": "copy",
            "reward_model": {"style": "rule", "ground_truth": f"{row['target']}/{row['classes']}"},
            "extra_info": {"index": index},
        }
        for index, row in enumerate(rows)
    ]
    (folder / "verl").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), folder / "verl" / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats[:32]), folder / "verl" / "validation.parquet")


def make(folder: Path, size: Size, family: str) -> None:
    """Written beside its place and moved there whole, so that a second process never reads half of it."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    tokenizer(size).save_pretrained(unfinished)
    model(size, family).save_pretrained(unfinished)
    write_data(unfinished / "data", examples(size))
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


if __name__ == "__main__":
    make(Path(sys.argv[1]), SIZES[sys.argv[2]], sys.argv[3])
