"""What may be said of a configuration that can change the model's answers: only what was compared, and never too little."""

from __future__ import annotations

import json

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as some

from autotune import answers, quality, results, tables
from autotune import export as exports
from autotune.answers import Answer, drift
from autotune.errors import AutotuneError, InvalidInput
from autotune.finalists import choose, verdicts
from autotune.ledger import Note
from autotune.quality import QUALITY, Guard, Watched
from autotune.tracking import payload
from autotune.trial import Configuration, Measured, Measurement, Origin, Row, TrialJob

NATS = some.floats(-30, 0, allow_nan=False)
PLACE = some.dictionaries(some.integers(0, 9), NATS, min_size=1, max_size=4).map(lambda place: tuple(place.items()))


@some.composite
def same_prompt(draw):
    """Answers of two engines to the same prompt."""
    length = draw(some.integers(1, 6))
    read = some.lists(NATS, min_size=length, max_size=length).map(tuple)
    top = some.lists(some.integers(0, 9), min_size=length, max_size=length).map(tuple)
    written = some.lists(PLACE, max_size=4).map(tuple)
    return tuple(Answer(tokens="x", read=draw(read), top=draw(top), written=draw(written)) for _ in range(2))


@drawn(some.lists(same_prompt(), min_size=1, max_size=4))
def test_a_drift_is_a_distance_and_nothing_is_far_from_itself(pairs):
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    found = drift(ours, theirs)
    assert found is not None and found.nats >= 0 and 0 <= found.agreement <= 1
    itself = drift(ours, ours)
    assert itself is not None and (itself.nats, itself.agreement) == (0, 1)


@drawn(some.lists(same_prompt(), min_size=1, max_size=3), some.floats(0.001, 5))
def test_moving_every_token_by_as_much_is_that_far(pairs, shift):
    ours = [one.model_copy(update={"written": ()}) for one, _ in pairs]
    moved = [one.model_copy(update={"read": tuple(value - shift for value in one.read)}) for one in ours]
    assert drift(moved, ours).nats == pytest.approx(shift, rel=1e-6)


def answer(read=(-1.0, -2.0), tokens="x", written=(), top=(1, 2)):
    return Answer(tokens=tokens, read=read, top=top, written=written)


def test_other_tokens_or_another_number_of_prompts_cannot_be_compared():
    assert drift([answer()], [answer(tokens="y")]) is None
    assert drift([answer()], [answer(), answer()]) is None
    assert drift([], []) is None
    assert drift([answer(read=(-1.0,))], [answer()]) is None


def test_what_is_written_counts_by_itself_so_that_many_prompt_tokens_do_not_hide_it():
    quiet = answer(read=(-1.0,) * 100, top=(1,) * 100, written=(((5, -0.5), (6, -1.0)),) * 2)
    loud = quiet.model_copy(update={"written": (((5, -0.9), (6, -1.0)), ((5, -0.9), (6, -1.0)))})
    assert drift([loud], [quiet]).nats == pytest.approx(0.4)


def test_an_answer_is_compared_up_to_the_first_token_that_differs():
    reference = answer(written=(((5, -0.1), (6, -3.0)), ((7, -0.1), (8, -3.0))))
    parted = answer(written=(((6, -0.2), (5, -1.1)), ((9, -9.0), (8, -9.1))))
    assert drift([parted], [reference]).nats == pytest.approx(1.0)
    unknown = answer(written=(((6, -0.2), (4, -2.1)),))
    assert drift([unknown], [reference]).nats == pytest.approx(2.0), "at most the last of the likeliest"


LOSSY = Guard(engines={"vllm": Watched(lossy={"kv_cache_dtype": "auto"})})
RANDOM = Guard(engines={"vllm": Watched(lossy={"kv_cache_dtype": None}, unchecked="the weights are random")})


@pytest.fixture
def study(small_study, make_record):
    """A search of three trials, two of them with an fp8 cache, and two rounds of the default, trial 1 and trial 3."""

    def made(moved=0.0, floor=0.0, guard=LOSSY, unchecked=None, tokens="x", rounds=2):
        def run(number, origin, values, speed, far=None):
            found = (
                [answer(read=(-1.0 - far, -2.0 + far), tokens=tokens if values else "x").model_dump()] if far is not None else None
            )
            fact = {"unchecked": unchecked} if unchecked and values else {"answers": found}
            rows = (Row(level={"request_rate": 4}, metrics={"output_tokens_per_s": speed, "ttft_ms.p99": 250.0}),)
            measured = Measurement(rows=rows, totals={"peak_memory_gib": 8.0}, facts={answers.FACT: fact} if found else {})
            update = {"number": number, "origin": origin, "outcome": Measured(measurement=measured)}
            return make_record(0).model_copy(update={**update, "configuration": Configuration(engine="vllm", values=values)})

        fast, slow = {"kv_cache_dtype": "fp8", "max_num_seqs": 64}, {"max_num_seqs": 64, "kv_cache_dtype": "auto"}
        records = [
            run(0, Origin.DEFAULT, {}, 100.0),
            run(1, Origin.SEARCH, fast, 160.0),
            run(2, Origin.SEARCH, {**fast, "max_num_seqs": 32}, 158.5),
            run(3, Origin.SEARCH, slow, 120.0),
        ]
        for turn in range(rounds):
            at = 4 + 3 * turn
            records.append(run(at, Origin.BASELINE, {}, 100.0 + turn, floor * turn))
            records.append(run(at + 1, Origin.FINALIST, fast, 158.0 + turn, moved))
            records.append(run(at + 2, Origin.FINALIST, slow, 119.0 + turn, 0.0))
        notes = (Note(kind=QUALITY, payload=guard.model_dump(mode="json"), at=0.0),)
        return results.StudyResults(small_study, tuple(records), notes=notes)

    return made


def test_a_lossy_finalist_that_stays_near_passes_and_clears_what_shares_its_values(study):
    found = study(moved=0.02)
    check = found.quality.check(found.record(2).configuration)
    assert check is found.quality.check(found.record(1).configuration)
    assert (check.answer, check.trials, check.nats) == ("passed", (1, 2, 5, 8), pytest.approx(0.02))
    assert {1, 2} <= found.membership.keys()
    assert "passes the check" in tables.gain_lines(found)[-1]


def test_a_lossy_winner_that_drifts_is_no_candidate_nor_is_what_shares_its_values(study, tmp_path):
    found = study(moved=0.3)
    assert found.membership.keys() == {3, 6, 9}
    assert found.best("output_tokens_per_s") == found.knee() == 3
    said = [line for line in tables.gain_lines(found) if line.startswith("Quality")]
    assert len(said) == 1 and "kv_cache_dtype=fp8" in said[0] and "0.3 nats" in said[0] and "cannot win" in said[0]
    reasons = {cell[0]: cell for cell in tables.losers(found).cells}
    assert reasons["changes answers"][1:3] == (4, "1, 2, 5, 8")
    jobs = [TrialJob(number=one.number, configuration=one.configuration, origin=one.origin) for one in found.records[4:]]
    assert {verdict.trial for verdict in verdicts(found, jobs)} == {3}
    with pytest.raises(AutotuneError, match=r"Trial 1 is not exported\. Quality: kv_cache_dtype=fp8"):
        exports.export(found, "shell", store=tmp_path, trial=1)


def test_a_harmless_value_of_a_lossy_parameter_is_not_watched(study):
    found = study(moved=0.3)
    assert found.quality.changes(found.record(3).configuration) == {}
    assert found.quality.check(found.record(3).configuration).answer == "passed"
    bfloat = Configuration(engine="vllm", values={"dtype": "bfloat16"})
    assert Watched(lossy={"dtype": "bfloat16"}).changes(bfloat) == {}
    assert Watched(lossy={"dtype": "float32"}).changes(bfloat) == {"dtype": "bfloat16"}
    assert Watched(lossy={"dtype": None}).changes(bfloat) == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"guard": RANDOM, "rounds": 0}, "the weights are random"),
        ({"unchecked": "The server refused."}, "The server refused"),
        ({"tokens": "y"}, "other tokens"),
        ({"rounds": 0}, "no finalist"),
        ({"moved": 0.3, "floor": 0.2}, "the default's own runs differ by 0.2"),
    ],
)  # fmt: skip
def test_what_was_not_compared_is_named_as_unchecked_and_why(study, how, why):
    found = study(**how)
    check = found.quality.check(found.record(1).configuration)
    assert check.answer == "not checked" and why in check.why
    assert 1 in found.membership, "nothing is known against it"
    assert str(check) in exports._cautions(found, found.candidate(1)), "its files say so"
    assert any("was not checked" in line and why in line for line in tables.gain_lines(found))


def test_the_floor_is_what_separates_the_defaults_own_runs(study):
    check = study(moved=0.05, floor=0.01).quality.check(Configuration(engine="vllm", values={"kv_cache_dtype": "fp8"}))
    assert check.floor == pytest.approx(0.01) and "runs differ by 0.01" in str(check)


def test_a_change_that_nothing_announced_fails_as_well(study):
    silent = Guard(engines={"vllm": Watched()})
    found = study(moved=0.3, guard=silent)
    assert found.quality.check(found.record(1).configuration).answer == "failed"
    assert found.membership.keys() == {2}, "only its own configuration is known to change anything"


def test_tables_and_mlflow_hold_the_drift_where_there_is_one(study):
    found = study(moved=0.3)
    drifts = found.trials["logprob_drift"].dropna()
    assert drifts.to_dict() == pytest.approx({5: 0.3, 6: 0.0, 7: 0.0, 8: 0.3, 9: 0.0})
    tags = payload.tags_of(found, found.record(5), "id")
    metrics = {point.key: point.value for point in payload.of_trial(found, found.record(5), tags, ()).metrics}
    assert (tags["autotune.quality"], metrics["logprob_drift"]) == ("failed", pytest.approx(0.3))
    assert "autotune.quality" not in payload.tags_of(found, found.record(0), "id")


def test_one_finalist_cannot_fail_where_there_is_room_for_two(study):
    before = study(rounds=0)
    assert [one.trial for one in choose(before, 1)] == [1]
    assert [one.trial for one in choose(before, 2)][-1] == 3
    assert sorted(one.trial for one in choose(before, 5)) in ([1, 3], [1, 2, 3]), "each once, and the default not at all"
    assert quality.Review(Guard(), 0.1, before.records).changes(before.record(1).configuration) == {}


def test_the_shipped_prompts_are_two_dozen_different_texts():
    texts = answers.prompts(None)
    assert len(texts) == len(set(texts)) == 24
    assert all(200 <= len(text) <= 450 for text in texts), "long enough to fill a KV cache, short enough for any model"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "There are 0 prompts"),
        ('{"prompt": "a"}\n{"text": "b"}\n', "Line 2"),
        ("[", "Line 1"),
        ('{"prompt": " "}', "Line 1"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path, content, said):
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match=said):
        answers.prompts(path)


@drawn(some.lists(some.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_is_read_back_as_it_was_written(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("prompts") / "own.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": text, "output_tokens": 4}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    assert answers.prompts(path) == tuple(texts)
