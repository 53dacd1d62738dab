"""The rollout engine's prefix-cache hit rate: a real vLLM in one process as TRL builds it, counters as verl's servers tell them."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from autotune import process, synthetic
from autotune.engines.trl import HERE, read_line

COLOCATED = """
import json, sys, types

sys.path.insert(0, sys.argv[1])


def main():
    import tap
    import vllm

    place = types.ModuleType("trl.generation.vllm_generation")
    place.LLM = vllm.LLM
    sys.modules[place.__name__] = place
    tap.keep_statistics()
    tap.keep_statistics()
    small = {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "block_size": 32}
    engine = place.LLM(model=sys.argv[2], load_format="dummy", **small)
    cache = tap.PrefixCache()
    cache.engine = engine
    sampling = vllm.SamplingParams(max_tokens=2, temperature=1.0)

    def generate(count):
        engine.generate([{"prompt_token_ids": list(range(10, 139))}] * count, sampling, use_tqdm=False)
        return cache.take()

    found = [cache.take(), generate(1), generate(4), cache.take()]
    engine.reset_prefix_cache()
    print("\\n" + json.dumps([*found, generate(1)]))


if __name__ == "__main__":  # vLLM's workers import this file again
    main()
"""


@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")
def test_vllm_inside_the_trainer_tells_its_hit_rate(tmp_path):
    model = synthetic.make("synthetic:nano", tmp_path)
    script = tmp_path / "colocated.py"
    script.write_text(COLOCATED)
    # TRL's engine runs in the trainer's own process.
    env = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_STARTUP_PLAN": "0", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    ran = process.run([sys.executable, str(script), str(HERE), str(model)], 280, env, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-3000:]
    nothing, alone, group, silent, reset = json.loads(ran.stdout.splitlines()[-1])
    assert nothing is None and silent is None, "an engine that generated nothing has no hit rate"
    assert alone == 0.0 and reset == 0.0, "new weights empty the cache"
    assert group == pytest.approx(4 * 128 / (4 * 129)), "whole blocks of the prompt are found"


def line(**more):
    return {
        "event": "step", "step": 1, "step_s": 4.0, "samples": 8, "fresh_samples": 8, "tokens": None, "broken": [],
        "phases": {"generate_s": 2.0, "weight_sync_s": 0.5, "rollout_s": 3.0}, "logs": {}, **more,
    }  # fmt: skip


def test_trls_hit_rate_is_the_engines_or_the_reward_functions():
    assert read_line(line(rollout_hit_rate=0.75, logs={"rollout_hit_rate": 0.1})).metrics["rollout_hit_rate"] == 0.75
    assert read_line(line(logs={"rollout_hit_rate": 0.1})).metrics["rollout_hit_rate"] == 0.1
    assert "rollout_hit_rate" not in read_line(line(rollout_hit_rate=None)).metrics


def test_handing_over_weights_is_no_part_of_generating():
    metrics = read_line(line()).metrics
    assert metrics["generate_s"] == 1.5 and metrics["weight_sync_s"] == 0.5 and metrics["update_s"] == 1.0


@pytest.fixture
def server():
    """A rollout server's /metrics; `told` is what it says next."""
    told = SimpleNamespace(text="", asked=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told.asked += 1
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(told.text.encode())

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    told.address = f"127.0.0.1:{listening.server_address[1]}"
    yield told
    listening.shutdown()
    listening.server_close()
    thread.join()


def counters(queries, hits, engine=0):
    label = f'{{engine="{engine}",model_name="m"}}'
    return f"vllm:prefix_cache_queries_total{label} {queries}\nvllm:prefix_cache_hits_total{label} {hits}\n"


def test_verls_servers_are_asked_after_each_step(trial, server):
    cache = trial.RolloutCache()
    server.text = "# TYPE x counter\n" + counters(100.0, 25.0) + counters(100.0, 25.0, engine=1)
    assert cache.take([server.address]) == {"autotune/rollout_hit_rate": 0.25}
    server.text = counters(300.0, 125.0)
    assert cache.take([server.address]) == {"autotune/rollout_hit_rate": 0.75}, "what this step added alone"
    assert cache.take([server.address]) == {}, "a step that asked nothing has no hit rate"


def test_sglangs_names_are_known(trial, server):
    server.text = "sglang:prompt_tokens_total 80.0\nsglang:cached_tokens_total 20.0\n"
    assert trial.RolloutCache().take([server.address]) == {"autotune/rollout_hit_rate": 0.25}


def test_a_server_that_does_not_count_is_asked_once(trial, server):
    cache = trial.RolloutCache()
    server.text = "vllm:num_requests_running 0\n"
    assert cache.take([server.address]) == cache.take([server.address]) == {} and server.asked == 1
    assert trial.RolloutCache().take(["autotune_hf_cpu_0:0"]) == trial.RolloutCache().take([]) == {}
