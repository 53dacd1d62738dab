"""What the tests of engines share."""

import importlib
import json
import sys
import urllib.request

import pytest

from autotune import process
from autotune.engines.base import Context
from autotune.engines.verl import TRIAL_FOLDER


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


@pytest.fixture
def trial(monkeypatch):
    """What a verl trial patches verl with, imported anew."""
    monkeypatch.syspath_prepend(str(TRIAL_FOLDER))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    sys.modules.pop("autotune_verl_trial", None)
    yield importlib.import_module("autotune_verl_trial")
    sys.modules.pop("autotune_verl_trial", None)
