"""Asks a serving engine for the log-probabilities of a prompt's tokens and of a short greedy answer. Shared by vLLM and SGLang.

Prompts go one at a time, so that no batch they would share adds noise of its own and a prompt's logits take little memory.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune import synthetic
from autotune.answers import Answer
from autotune.engines.base import EngineOptions
from autotune.trial import FailureKind, Phase, TrialFailed, digest_of

Ask = Callable[[str, str, str], Answer]
"""Asks the server at an address, for a model, one prompt."""
WRITTEN = 8
"""Tokens of the answer: enough to read what the prompt left in the KV cache, few enough to cost a second or two in all."""
LIKELIEST = 5
"""Tokens told in each place of the answer."""
_TIMEOUT_S = 120.0
_DIGITS = 5


def random_weights(options: EngineOptions) -> str | None:
    """Why answers mean nothing for a model of random weights; None where they are real."""
    if synthetic.is_synthetic(options.model) or options.fixed.get("load_format") == "dummy":
        return "the weights are random, so that their answers mean nothing"
    return None


def of_vllm(endpoint: str, model: str, prompt: str) -> Answer:
    """By the completions endpoint of vLLM. Raises TrialFailed."""
    asked = {
        "model": model,
        "prompt": prompt,
        "max_tokens": WRITTEN,
        "temperature": 0,
        "ignore_eos": True,
        "prompt_logprobs": 1,
        "logprobs": LIKELIEST,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    choice = _post(f"{endpoint}/v1/completions", asked)["choices"][0]
    tokens: list[int] = choice["prompt_token_ids"]
    places: list[Mapping[str, Any]] = choice["prompt_logprobs"][1:]
    told: list[Mapping[str, float]] = choice["logprobs"]["top_logprobs"]
    likeliest = [{_number(token): value for token, value in place.items()} for place in told]
    return Answer(
        tokens=digest_of(tokens),
        read=tuple(_short(place[str(token)]["logprob"]) for place, token in zip(places, tokens[1:], strict=True)),
        top=tuple(int(max(place, key=lambda token: float(place[token]["logprob"]))) for place in places),
        written=tuple(_ordered(token, place) for token, place in zip(choice["token_ids"], likeliest, strict=True)),
    )


def of_sglang(endpoint: str, model: str, prompt: str) -> Answer:
    """By SGLang's own endpoint, which serves one model whatever it is called. Raises TrialFailed."""
    asked = {
        "text": prompt,
        "sampling_params": {"max_new_tokens": WRITTEN, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": LIKELIEST,
    }
    told = _post(f"{endpoint}/generate", asked)["meta_info"]
    places: list[Sequence[Any]] = told["input_token_logprobs"]
    tops: list[Sequence[Sequence[Any]]] = told["input_top_logprobs"]
    chosen: list[Sequence[Any]] = told["output_token_logprobs"]
    others: list[Sequence[Sequence[Any]]] = told["output_top_logprobs"]
    likeliest = [{int(entry[1]): float(entry[0]) for entry in (*place, own)} for place, own in zip(others, chosen, strict=True)]
    return Answer(
        tokens=digest_of([int(entry[1]) for entry in places]),
        read=tuple(_short(entry[0]) for entry in places[1:]),
        top=tuple(int(max(place, key=lambda entry: float(entry[0]))[1]) for place in tops[1:]),
        written=tuple(_ordered(int(own[1]), place) for own, place in zip(chosen, likeliest, strict=True)),
    )


def asked(ask: Ask, endpoint: str, model: str, prompts: Sequence[str]) -> tuple[Answer, ...]:
    """The answers to all prompts, one after the other. Raises TrialFailed, also for an answer of another shape than expected."""
    try:
        return tuple(ask(endpoint, model, prompt) for prompt in prompts)
    except (LookupError, TypeError, ValueError) as error:
        raise _failed(f"The server's log-probabilities cannot be read: {type(error).__name__}: {error}"[:300]) from error


def _ordered(chosen: int, likeliest: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """The chosen token first, then the others."""
    others = [token for token in likeliest if token != chosen]
    return tuple((token, _short(likeliest[token])) for token in (chosen, *others))


def _number(token: str) -> int:
    """A token's id in the form that vLLM gives it, `token_id:17`."""
    return int(token.removeprefix("token_id:"))


def _short(value: float) -> float:
    return round(float(value), _DIGITS)


def _post(url: str, body: Mapping[str, Any]) -> Any:
    """The parsed answer. Never through a proxy: the server is on this machine."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode(errors="replace")
        raise _failed(f"The server refused to give log-probabilities with status {error.code}: {said}"[:500]) from error
    except (OSError, ValueError) as error:
        raise _failed(f"The server did not give log-probabilities: {error}"[:500]) from error


def _failed(reason: str) -> TrialFailed:
    return TrialFailed(FailureKind.UNHEALTHY, Phase.QUALITY, reason)
