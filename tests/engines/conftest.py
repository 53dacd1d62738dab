"""What the tests of engines share."""

import json
import urllib.request

import pytest

from autotune import process
from autotune.engines.base import Context


@pytest.fixture
def context(tmp_path):
    return Context(
        study="s",
        trial=3,
        tag=process.make_tag(tmp_path, "s", 3),
        folder=tmp_path / "folder",
        scratch=tmp_path / "scratch",
        cache=tmp_path / "cache",
        seed=11,
    )


@pytest.fixture
def complete():
    """Asks a served engine for some tokens, and gives how many came."""

    def completed(session, prompt=(5, 6, 7, 8), tokens=4):
        body = {"model": session.model, "prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{session.endpoint}/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["usage"]["completion_tokens"]

    return completed
