import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.workloads._load.arrivals import arrivals, replay
from autotune.workloads._load.options import HttpOptions, LengthDistribution
from autotune.workloads._load.plans import Target, level_plans, pieces
from autotune.workloads._load.traffic import Source, lengths


def source(traffic, tmp_path="/nowhere", seed=1, **changes):
    options = HttpOptions.model_validate({"traffic": traffic, "load": [{"concurrency": 1}], **changes})
    from pathlib import Path

    (plan, *_) = level_plans(options, options.load[0], Target("http://127.0.0.1:1", "m"), pieces(options, Path(tmp_path)), seed)
    return Source(json.loads(json.dumps(plan)))


def bodies(one, count):
    return [json.loads(one.begin(number).ask().body) for number in range(count)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 50))
def test_lengths_are_exact(tokens, answer):
    (body,) = bodies(source({"input_tokens": tokens, "output_tokens": answer}), 1)
    assert len(body["prompt"]) == tokens
    assert body["max_tokens"] == body["min_tokens"] == answer
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert all(1000 <= token < 20000 for token in body["prompt"])


def test_content_is_the_requests_own_and_repeatable():
    first, again, other = (source({"input_tokens": 64, "output_tokens": 4}, seed=seed) for seed in (1, 1, 2))
    assert bodies(first, 20) == bodies(again, 20) != bodies(other, 20)
    heads = {tuple(body["prompt"][:4]) for body in bodies(first, 500)}
    assert len(heads) == 500


def test_a_prompt_may_be_longer_than_the_pool():
    (body,) = bodies(source({"input_tokens": 200_000, "output_tokens": 4}), 1)
    assert len(body["prompt"]) == 200_000


def test_shared_prefixes_come_in_groups():
    one = source({"input_tokens": 8, "output_tokens": 4, "shared_prefix": {"tokens": 32, "count": 3}})
    found = bodies(one, 60)
    assert len({tuple(body["prompt"][:32]) for body in found}) == 3
    assert len({tuple(body["prompt"][32:]) for body in found}) == 60
    assert {len(body["prompt"]) for body in found} == {40}


def test_the_model_decides_the_vocabulary(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 400}')
    (body,) = bodies(source({"input_tokens": 500, "output_tokens": 4}, tmp_path), 1)
    assert min(body["prompt"]) >= 100
    assert max(body["prompt"]) < 360


def test_turns_carry_the_conversation():
    one = source({"input_tokens": 8, "output_tokens": 3, "turns": 3})
    talk = one.begin(0)
    first = talk.ask()
    talk.answered([7, 8, 9], "", 3)
    second = json.loads(talk.ask().body)
    assert second["return_token_ids"] is True
    assert second["prompt"][:11] == [*json.loads(first.body)["prompt"], 7, 8, 9]
    assert len(second["prompt"]) == 19
    talk.answered([], "", 3)
    third = talk.ask()
    assert len(json.loads(third.body)["prompt"]) == third.prompt_tokens == 30
    assert talk.ask() is None


def test_chat_speaks_in_messages():
    one = source({"input_tokens": 5, "output_tokens": 3, "turns": 2, "shared_prefix": {"tokens": 4}}, endpoint="chat")
    talk = one.begin(0)
    first = talk.ask()
    assert first.prompt_tokens is None
    talk.answered([], 'so "quoted"\n', 3)
    messages = json.loads(talk.ask().body)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == 'so "quoted"\n'
    assert len(messages[1]["content"].split()) == 5


def test_dataset(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": 'say "a"', "output_tokens": 3}, {"prompt_token_ids": [5, 6], "output_tokens": 4}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = bodies(source({"dataset": str(path)}), 4)
    assert sorted((str(body["prompt"]), body["max_tokens"]) for body in found[:2]) == [("[5, 6]", 4), ('say "a"', 3)]
    assert found[2:] == found[:2]


def test_trace_blocks_are_shared_by_hash(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 1000, "input_length": 20, "output_length": 2, "hash_ids": [1, 2, 9]},
        {"timestamp": 0, "input_length": 18, "output_length": 3, "hash_ids": [1, 2, 5]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = source({"trace": str(path), "trace_block_tokens": 8})
    early, late, again, _ = bodies(one, 4)
    assert (len(early["prompt"]), len(late["prompt"])) == (18, 20)
    assert early["prompt"][:16] == late["prompt"][:16]
    assert early["prompt"][16:] != late["prompt"][16:18]
    assert again["prompt"] != early["prompt"]


@pytest.mark.parametrize(
    ("spec", "mean"),
    [({"uniform": (10, 30)}, 20), ({"normal": {"mean": 50, "std": 5, "max": 100}}, 50), ({"exactly": 7}, 7),
     ({"lognormal": {"mean": 100, "std": 50, "max": 10_000}}, 100)],
)  # fmt: skip
def test_length_means(spec, mean):
    distribution = LengthDistribution.model_validate(spec)
    sample = lengths(distribution.model_dump(mode="json"))
    draw = random.Random(1)
    values = [sample(draw) for _ in range(20_000)]
    assert np.mean(values) == pytest.approx(mean, rel=0.03)
    assert distribution.mean == mean
    assert max(values) <= distribution.highest


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (None, 0.0)])
def test_arrivals_have_their_rate_and_burstiness(burstiness, variation):
    gaps = np.diff(list(itertools.islice(arrivals(20, burstiness, 3), 20_000)))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.06, abs=1e-6)


def test_replay_keeps_the_gaps_and_begins_again():
    times = list(itertools.islice(replay([500, 1500, 2500], 2.0), 5))
    assert times == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])
