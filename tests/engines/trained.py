"""Makes two small language models, with no download: `trained.py FOLDER`.

FOLDER/real is a Llama of two layers that has learnt the prompts that ship, in seconds on one core. FOLDER/spoilt is the same
with a third of each weight's spread as noise on it: it answers differently, as after a bad quantisation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from autotune.answers import prompts


def tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>")


def trained(texts, words, steps=60):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64}
    more = {"num_key_value_heads": 1, "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(words), **shape, **more), dtype=torch.float32)
    stream = torch.tensor([token for text in texts for token in [0, *words(text)["input_ids"]]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(stream) - 129, (8,)).tolist()
        batch = torch.stack([stream[start : start + 128] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def make(folder: Path) -> None:
    import torch

    texts = prompts(None)
    words = tokenizer(texts)
    model = trained(texts, words)
    for name, noise in (("real", 0.0), ("spoilt", 0.3)):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(noise * weight.std() * torch.randn_like(weight))
        words.save_pretrained(folder / name)
        model.save_pretrained(folder / name)


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    make(Path(sys.argv[1]))
