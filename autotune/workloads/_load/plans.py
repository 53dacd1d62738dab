"""What the client processes are told about a level, and what must be known before: vocabulary, dataset, client count."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from autotune.errors import Mistake
from autotune.workloads._load.options import HttpOptions, Load

SAFE_IDS = (1000, 20000)
"""Token ids that every larger vocabulary has and that are no special tokens, for a model whose files are not at hand."""
MANY_PIECES = 20000
COMMON_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work number night point home water room mother area money story fact "
    "month lot right study book eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name team minute idea kid body information back parent face others level office door health "
    "person art war history party result change morning reason research girl guy moment air teacher force education"
)
"""Words that are one token each in every common vocabulary; used when the model's tokenizer is not at hand."""


def pieces(options: HttpOptions, folder: Path) -> Mapping[str, Any]:
    """The single-token pieces that prompts are made of: a range of token ids, or words for the chat endpoint."""
    if options.endpoint == "chat":
        return {"words": _words(folder / "tokenizer.json") or [f" {word}" for word in COMMON_WORDS.split()]}
    size = _vocabulary_size(folder / "config.json")
    if size is None:
        return {"ids": SAFE_IDS}
    # The first ids and the last ones are where vocabularies keep special tokens.
    low = min(1000, size // 4)
    return {"ids": (low, min(low + MANY_PIECES, max(size * 9 // 10, low + 1)))}


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked."""

    endpoint: str | None
    model: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises ValueError for an endpoint that is no `http://host:port`."""
        parts = urlsplit(self.endpoint or "")
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"The endpoint {self.endpoint!r} is no http://host:port.")
        return parts.hostname, parts.port


def level_plans(
    options: HttpOptions,
    load: Load,
    target: Target,
    vocabulary: Mapping[str, Any],
    seed: int,
    ttft_limit_s: float | None = None,
) -> list[Mapping[str, Any]]:
    """The plan of one level for each client process; they differ only in `share`. Requests that wait longer than the limit for
    their first token are counted while the level runs."""
    host, port = target.address
    shares = client_count(options)
    plan = {
        "host": host,
        "port": port,
        "model": target.model,
        "endpoint": options.endpoint,
        "traffic": options.traffic.model_dump(mode="json"),
        "pieces": vocabulary,
        "ignore_eos": options.ignore_eos,
        "body": dict(options.body),
        "deadline_s": options.window.deadline_s,
        # A conversation brings its later turns by itself: fewer arrivals make the same rate of requests.
        "request_rate": load.request_rate and load.request_rate / options.traffic.turns.mean,
        "burstiness": load.arrival.burstiness,
        "concurrency": load.concurrency,
        "replay": load.replay,
        "requests": None,
        "ttft_limit_s": ttft_limit_s,
        "seed": seed,
        "prefix_seed": options.seed,
        "shares": shares,
    }
    return [{**plan, "share": share} for share in range(shares)]


def client_count(options: HttpOptions) -> int:
    """Client processes: as asked, else one per four cores up to eight; two at least with four cores, or for a climb."""
    if options.clients is not None:
        return options.clients
    cores = len(os.sched_getaffinity(0))
    climbs = any(load.slo_climb is not None for load in options.load)
    return min(max(2 if climbs or cores >= 4 else 1, cores // 4), 8)


def recorded_faults(options: HttpOptions) -> Iterator[Mistake]:
    """Read a dataset or trace once: what keeps it from being used, the first ten lines of it."""
    traffic = options.traffic
    path = traffic.dataset or traffic.trace
    if path is None:
        return
    name = "dataset" if traffic.dataset is not None else "trace"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        yield Mistake(f"traffic.{name}", f"{path} cannot be read: {error.strerror}.")
        return
    if not any(line.strip() for line in lines):
        yield Mistake(f"traffic.{name}", f"{path} holds no requests.")
    check = _dataset_fault if name == "dataset" else _trace_fault
    faults = ((number, check(line, options)) for number, line in enumerate(lines, 1) if line.strip())
    broken = ((number, fault) for number, fault in faults if fault is not None)
    for number, fault in islice(broken, 10):
        yield Mistake(f"traffic.{name}", f"Line {number} of {path} cannot be used. {fault}")


def _dataset_fault(line: bytes, options: HttpOptions) -> str | None:
    row = _row(line)
    if row is None:
        return "This is not a JSON object."
    allowed = ("prompt", "messages") if options.endpoint == "chat" else ("prompt", "prompt_token_ids")
    if not any(row.get(name) for name in allowed):
        return f"The endpoint {options.endpoint} needs one of {', '.join(allowed)}."
    tokens = row.get("output_tokens")
    if tokens is None and options.traffic.output_tokens is None:
        return "There is no output_tokens here, and none in the study's traffic."
    if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
        return f"output_tokens must be a whole number above zero, not {tokens!r}."
    return None


def _trace_fault(line: bytes, options: HttpOptions) -> str | None:
    row = _row(line)
    if row is None:
        return "This is not a JSON object."
    for name in ("timestamp", "input_length", "output_length"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < (0 if name == "timestamp" else 1):
            return f"{name} must be a number{'' if name == 'timestamp' else ' above zero'}, not {value!r}."
    ids = row.get("hash_ids", [])
    return (
        None if isinstance(ids, list) and all(isinstance(one, int) for one in ids) else "hash_ids must be a list of whole numbers."
    )


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _vocabulary_size(path: Path) -> int | None:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) and size > 1 else None


def _words(path: Path) -> list[str] | None:
    """Whole words that the model's tokenizer gives back as one token each; None without tokenizer or with too few."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        return None
    if not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    ids = range(min(tokenizer.get_vocab_size(), 4 * MANY_PIECES))
    texts = (tokenizer.decode([one]) for one in ids)
    words = [f" {word}" for word in dict.fromkeys(text.strip() for text in texts) if word.isascii() and word.isalpha()]
    encodings = tokenizer.encode_batch(words, add_special_tokens=False)
    single = [word for word, encoding in zip(words, encodings, strict=True) if len(encoding.ids) == 1]
    return single[:MANY_PIECES] if len(single) >= 100 else None
