"""The rollout `hf_cpu` for verl: one Ray actor generates with Transformers on the CPU, in batches of `rollout.max_num_seqs`.

Requests that arrive together and ask for the same sampling are generated together. New weights come through Ray's object
store after each update. Runs in verl's own environment and imports nothing of autotune.
"""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator, attr-defined, no-any-return"
from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

GATHER_S = 0.02
"""How long the first request of a batch waits for others: a trainer sends a step's requests within milliseconds."""


@dataclass(eq=False)
class Request:
    prompt: list[int]
    sampling: dict[str, Any]
    answer: asyncio.Future[tuple[list[int], list[float]]]


@dataclass(frozen=True)
class Sampling:
    """What of verl's sampling parameters generation on a CPU honours."""

    temperature: float
    top_p: float
    top_k: int
    limit: int

    @classmethod
    def of(cls, asked: dict[str, Any], limit: int) -> Sampling:
        return cls(
            temperature=float(asked.get("temperature", 1.0)),
            top_p=float(asked.get("top_p", 1.0)),
            top_k=max(0, int(asked.get("top_k", 0))),
            limit=int(asked.get("max_tokens") or asked.get("max_new_tokens") or limit),
        )

    def arguments(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False, "max_new_tokens": self.limit}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {"do_sample": True, "max_new_tokens": self.limit, **chosen}


class Server:
    """Holds the model; the actor that verl sends its generation requests to."""

    def __init__(self, path: str, batch: int, limit: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.end: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.batch, self.limit = batch, limit
        self.step = 0
        self.waiting: list[Request] = []
        self.worker: asyncio.Task[None] | None = None

    async def ready(self) -> bool:
        return True

    async def generate(self, prompt_ids: Iterable[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        request = Request(list(prompt_ids), dict(sampling_params), asyncio.get_running_loop().create_future())
        self.waiting.append(request)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self.work())
        tokens, log_probs = await request.answer
        extra = {"global_steps": self.step}
        return TokenOutput(token_ids=tokens, log_probs=log_probs, stop_reason="completed", extra_fields=extra)

    async def work(self) -> None:
        await asyncio.sleep(GATHER_S)
        while self.waiting:
            sampling = self.waiting[0].sampling
            batch = [request for request in self.waiting if request.sampling == sampling][: self.batch]
            self.waiting = [request for request in self.waiting if request not in batch]
            prompts = [request.prompt for request in batch]
            try:
                answers = await asyncio.to_thread(self.answers, prompts, Sampling.of(sampling, self.limit))
            except Exception as error:
                for request in batch:
                    request.answer.set_exception(RuntimeError(repr(error)))
            else:
                for request, answer in zip(batch, answers, strict=True):
                    request.answer.set_result(answer)

    @torch.no_grad()
    def answers(self, prompts: list[list[int]], sampling: Sampling) -> list[tuple[list[int], list[float]]]:
        """Generated tokens of every prompt and their log-probabilities at the sampling temperature."""
        width = max(len(prompt) for prompt in prompts)
        tokens = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = self.model.generate(
            tokens,
            attention_mask=mask,
            pad_token_id=self.pad,
            eos_token_id=self.end,
            return_dict_in_generate=True,
            output_logits=True,
            **sampling.arguments(),
        )
        generated = made.sequences[:, width:]
        logits = torch.stack(made.logits, dim=1) / (sampling.temperature or 1.0)
        log_probs = logits.log_softmax(-1).gather(-1, generated.unsqueeze(-1)).squeeze(-1)
        return [self.cut(row, probs) for row, probs in zip(generated.tolist(), log_probs.tolist(), strict=True)]

    def cut(self, tokens: list[int], log_probs: list[float]) -> tuple[list[int], list[float]]:
        """An answer ends with its end-of-sequence token; what stands behind it is padding."""
        length = tokens.index(self.end) + 1 if self.end in tokens else len(tokens)
        return tokens[:length], log_probs[:length]

    async def load(self, weights: list[Any], step: int | None) -> None:
        """Take over weights that lie in Ray's object store; a reference inside a list arrives unresolved."""
        state = await asyncio.to_thread(ray.get, weights[0])
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if unexpected or any(name != "lm_head.weight" for name in missing):
            raise RuntimeError(f"The trainer's weights do not fit the rollout's model: {missing=} {unexpected=}")
        self.step = self.step if step is None else step

    async def set_global_steps(self, step: int) -> None:
        self.step = step

    async def pass_by(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Memory, cache and profiling commands for a GPU engine have nothing to do here."""
        return {}

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = pass_by
    abort_all_requests = resume_generation = wait_for_requests_to_drain = pass_by
    start_profile = stop_profile = pass_by


def server_name(replica: int) -> str:
    return f"autotune_hf_cpu_{replica}"


class Replica(RolloutReplica):
    """verl's handle on the server."""

    async def launch_servers(self) -> None:
        path = getattr(self.model_config, "path", None) or self.model_config["path"]
        actor = ray.remote(Server).options(name=server_name(self.replica_rank), max_concurrency=self.max_concurrency, num_cpus=0)
        server = actor.remote(path, self.config.max_num_seqs, self.config.response_length)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"{server_name(self.replica_rank)}:0"


class Adapter(BaseRollout):
    """The trainer's end: hands new weights to the server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ.get("RANK", "0")) if replica_rank == -1 else replica_rank

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    @torch.no_grad()
    async def update_weights(self, weights: Any, global_steps: int | None = None, **_: Any) -> None:
        state = {name: tensor.detach().cpu().float().clone() for name, tensor in weights}
        server = ray.get_actor(server_name(self.replica_rank))
        await server.load.remote([ray.put(state)], global_steps)
