"""What servers answer to the fixed prompts: read from every shape they come in, and from real engines with trained weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autotune import engines, process
from autotune.answers import drift, prompts
from autotune.engines import _logprobs
from autotune.engines.base import Context, EngineOptions
from autotune.trial import Configuration, Phase, TrialFailed, digest_of

HERE = Path(__file__).parent
SGLANG = HERE.parents[1] / ".venvs" / "sglang" / "bin" / "python"

OF_VLLM = {
    "choices": [
        {
            "prompt_token_ids": [5, 6, 7],
            "prompt_logprobs": [
                None,
                {"6": {"logprob": -1.5, "rank": 2}, "9": {"logprob": -0.5, "rank": 1}},
                {"7": {"logprob": -0.25, "rank": 1}},
            ],
            "token_ids": [8, 4],
            "logprobs": {"top_logprobs": [{"token_id:8": -0.1, "token_id:3": -2.5}, {"token_id:3": -0.7, "token_id:4": -0.7}]},
        }
    ]
}
OF_SGLANG = {
    "meta_info": {
        "input_token_logprobs": [[None, 5, None], [-1.5, 6, None], [-0.25, 7, None]],
        "input_top_logprobs": [None, [[-0.5, 9, None], [-1.5, 6, None]], [[-0.25, 7, None], [-2.0, 1, None]]],
        "output_token_logprobs": [[-0.1, 8, None], [-0.7, 4, None]],
        "output_top_logprobs": [[[-0.1, 8, None], [-2.5, 3, None]], [[-0.7, 3, None], [-0.7, 4, None]]],
    }
}


@pytest.fixture
def server():
    """A server that answers every POST with a status and a text; what it was asked is kept."""
    asked, answer = [], {"status": 200, "text": "{}"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(answer["text"].encode())

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked, answer
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(("ask", "told"), [(_logprobs.of_vllm, OF_VLLM), (_logprobs.of_sglang, OF_SGLANG)])
def test_both_engines_answers_become_the_same(server, ask, told):
    endpoint, _, answer = server
    answer["text"] = json.dumps(told)
    (found,) = _logprobs.asked(ask, endpoint, "m", ["Hello there"])
    assert (found.tokens, found.read, found.top) == (digest_of([5, 6, 7]), (-1.5, -0.25), (9, 7))
    assert found.written == (((8, -0.1), (3, -2.5)), ((4, -0.7), (3, -0.7))), "the chosen token comes first"


def test_prompts_are_asked_greedily_and_one_by_one(server):
    endpoint, asked, answer = server
    answer["text"] = json.dumps(OF_VLLM)
    _logprobs.asked(_logprobs.of_vllm, endpoint, "m", ["one", "two"])
    assert [(path, body["prompt"], body["temperature"]) for path, body in asked] == [
        ("/v1/completions", "one", 0),
        ("/v1/completions", "two", 0),
    ]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (400, '{"error": "no prompt_logprobs with this model"}', "status 400: .*no prompt_logprobs"),
        (200, "{}", "cannot be read: KeyError"),
        (200, "not JSON", "did not give"),
        (200, json.dumps({"choices": [{**OF_VLLM["choices"][0], "prompt_token_ids": [5]}]}), "cannot be read"),
        (200, json.dumps(OF_VLLM).replace("-0.25", "NaN"), "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(server, status, text, said):
    endpoint, _, answer = server
    answer |= {"status": status, "text": text}
    with pytest.raises(TrialFailed, match=said) as caught:
        _logprobs.asked(_logprobs.of_vllm, endpoint, "m", ["one"])
    assert caught.value.failed.phase is Phase.QUALITY


def test_random_weights_have_nothing_to_compare():
    for model, fixed in (("synthetic:tiny", {}), ("/models/real", {"load_format": "dummy"})):
        assert "random" in _logprobs.random_weights(EngineOptions(kind="vllm", model=model, fixed=fixed))
    assert _logprobs.random_weights(EngineOptions(kind="vllm", model="/models/real")) is None
    assert "no log-probabilities" in engines.get("recorded")(engines.get("recorded").Options(kind="recorded")).incomparable()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learnt something, and the same with noise on its weights."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(HERE / "trained.py"), str(folder)], check=True, capture_output=True)
    return {name: folder / name for name in ("real", "spoilt")}


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """What an engine answers to the prompts that ship, `times` over."""
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))

    def asked(kind, model, values, times=1, **options):
        made = engines.get(kind)
        engine = made(made.Options(kind=kind, model=str(model), start_timeout_s=400, **options))
        assert engine.incomparable() is None
        tag = process.make_tag(tmp_path, "test", 0)
        # A log that another launch has ended in would be read as this one's.
        trial = Path(tempfile.mkdtemp(dir=tmp_path))
        folders = {"folder": trial / "trial", "scratch": trial / "scratch", "cache": tmp_path / "cache"}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        context = Context(study="test", trial=0, tag=tag, **folders)
        with engine.open(engine.launch(Configuration(engine=kind, values=values), context), context) as session:
            session.wait_ready()
            return [session.answers(prompts(None)) for _ in range(times)]

    return asked


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_vllm_tells_a_smaller_type_from_spoilt_weights(answers, trained):
    fixed = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 512}
    options = {"fixed": fixed, "fork": True}
    reference, again = answers("vllm", trained["real"], {"dtype": "float32"}, times=2, **options)
    assert drift(again, reference).nats < 0.001
    (coarse,) = answers("vllm", trained["real"], {"dtype": "bfloat16"}, **options)
    (spoilt,) = answers("vllm", trained["spoilt"], {"dtype": "float32"}, **options)
    assert 0.001 < drift(coarse, reference).nats < 0.1 < drift(spoilt, reference).nats
    assert drift(coarse, reference).agreement > drift(spoilt, reference).agreement


@pytest.mark.engine
@pytest.mark.skipif(not SGLANG.is_file(), reason="SGLang is not installed here; make engine-sglang")
@pytest.mark.timeout(900)
def test_sglang_tells_a_smaller_type_from_spoilt_weights(answers, trained):
    fixed = {"max_total_tokens": 4096, "context_length": 512, "max_running_requests": 4}
    options = {"fixed": fixed, "python": SGLANG, "env": {"OMP_NUM_THREADS": "1"}}
    reference, again = answers("sglang", trained["real"], {"dtype": "float32"}, times=2, **options)
    assert drift(again, reference).nats < 0.001
    (coarse,) = answers("sglang", trained["real"], {"dtype": "bfloat16"}, **options)
    (spoilt,) = answers("sglang", trained["spoilt"], {"dtype": "float32"}, **options)
    assert 0.001 < drift(coarse, reference).nats < 0.1 < drift(spoilt, reference).nats
