import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import cache, ledger
from autotune.errors import AutotuneError, NotFound, StoreUnwritable, StudyBusy
from autotune.ledger import Ledger
from autotune.trial import (
    Configuration,
    Failed,
    FailureKind,
    Measured,
    Measurement,
    Origin,
    Phase,
    Row,
    TrialJob,
    TrialRecord,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | finite | names
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8)
rows = st.builds(
    Row,
    level=st.dictionaries(names, scalars, max_size=2),
    metrics=st.dictionaries(names, finite, max_size=3),
    invalid=st.none() | names,
)
measurements = st.builds(
    Measurement,
    rows=st.lists(rows, max_size=3).map(tuple),
    totals=st.dictionaries(names, finite, max_size=2),
    facts=st.dictionaries(names, values, max_size=2),
)
outcomes = st.builds(Measured, measurement=measurements) | st.builds(
    Failed,
    kind=st.sampled_from(FailureKind),
    phase=st.sampled_from(Phase),
    evidence=st.lists(names, max_size=2).map(tuple),
    advice=names,
    partial=st.none() | measurements,
)
records = st.builds(
    TrialRecord,
    number=st.integers(0, 5),
    configuration=st.builds(Configuration, engine=names, values=st.dictionaries(names, values, max_size=3)),
    origin=st.sampled_from(Origin),
    outcome=outcomes,
    point=st.dictionaries(names, scalars, max_size=3),
    effective=st.dictionaries(names, values, max_size=2),
    command=st.lists(names, max_size=2).map(tuple),
    seconds=st.dictionaries(names, finite, max_size=2),
    gpus=st.lists(st.integers(0, 8), max_size=2).map(tuple),
    started_at=finite,
)


def measured(number, **metrics):
    outcome = Measured(measurement=Measurement(rows=(Row(level={"concurrency": 1}, metrics=metrics),)))
    return TrialRecord(number=number, configuration=Configuration(engine="fake"), origin=Origin.SEARCH, outcome=outcome)


def job(number, attempt=1):
    return TrialJob(number=number, configuration=Configuration(engine="fake", values={"a": number}), attempt=attempt)


def begin(folder, **kwargs):
    return Ledger(folder, "name: s\n", "d1", **kwargs)


def types(value):
    if isinstance(value, dict):
        return {key: types(inner) for key, inner in value.items()}
    return [types(inner) for inner in value] if isinstance(value, list | tuple) else type(value)


@given(records)
@settings(max_examples=300, deadline=None)
def test_trials_are_encoded_without_loss(record):
    back = TrialRecord.model_validate_json(record.model_dump_json())
    assert back == record
    assert types(back.model_dump()) == types(record.model_dump())


@given(st.lists(records, min_size=1, max_size=4), st.integers(0, 10**6), st.sampled_from([b"", b"\0" * 20, b"\xff{"]))
@settings(max_examples=60, deadline=None)
def test_a_ledger_torn_at_any_byte_keeps_every_complete_record(tmp_path_factory, written, torn_at, junk):
    folder = tmp_path_factory.mktemp("study")
    ends = []
    with begin(folder) as book:
        for record in written:
            book.begin(job(record.number))
            book.record(record)
            ends.append(book.path.stat().st_size)
    content = (folder / ledger.FILE).read_bytes()
    cut = torn_at % (len(content) + 1)  # time stamps differ in length, so the length is no part of the drawn example
    (folder / ledger.FILE).write_bytes(content[:cut] + junk)
    whole = [record for record, end in zip(written, ends, strict=True) if end - 1 <= cut and not (junk and end - 1 == cut)]
    assert ledger.read(folder).records == {record.number: record for record in whole}
    with begin(folder) as book:
        assert book.records == {record.number: record for record in whole}
        book.record(measured(9, x=1.0))
    with begin(folder) as book:
        assert set(book.records) == {record.number for record in whole} | {9}


def test_begun_trials_without_a_result_are_in_flight(tmp_path):
    with begin(tmp_path / "s") as book:
        for number in range(3):
            book.begin(job(number))
        book.record(measured(1, x=1.0))
        book.note("quarantine", {"gpu": 1})
    with begin(tmp_path / "s") as book:
        assert book.in_flight == (job(0), job(2))
        assert [(note.kind, note.payload) for note in book.notes] == [("quarantine", {"gpu": 1})]
        book.begin(job(2, attempt=2))
        assert book.in_flight == (job(0), job(2, attempt=2))


def test_a_line_damaged_in_the_middle_is_named_not_dropped(tmp_path):
    with begin(tmp_path) as book:
        book.record(measured(0, x=1.0))
        book.record(measured(1, x=2.0))
    lines = (tmp_path / ledger.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / ledger.FILE).write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    with pytest.raises(AutotuneError, match=r"ledger\.jsonl:2"):
        begin(tmp_path)
    assert (tmp_path / ledger.FILE).read_bytes().count(b"\n") == 3


def test_a_second_driver_is_refused_with_the_holder(tmp_path):
    with begin(tmp_path / "chat"), pytest.raises(StudyBusy, match=f"'chat'.*process {os.getpid()} on .*, since 20"):
        begin(tmp_path / "chat")
    begin(tmp_path / "chat").close()


HOLD = """
import sys,time
from pathlib import Path
from autotune.ledger import Ledger
book=Ledger(Path(sys.argv[1]),'name: s','d1')
print('held',flush=True)
time.sleep(60)
"""


def test_a_killed_holder_holds_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StudyBusy, match=f"process {holder.pid} on"):
        begin(tmp_path)
    assert ledger.read(tmp_path).digest == "d1"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    begin(tmp_path).close()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_trial_never_finds_the_folder_of_one_that_the_ledger_does_not_know(tmp_path, fresh):
    """Setting aside may be cut short, and a ledger removed by hand: what an earlier trial of the number logged, and the steps it
    trained, would be read as this one's."""
    with begin(tmp_path) as book:
        book.record(measured(0, x=1.0))
    kept = tmp_path / "trials" / "0000-1" / "steps-0.jsonl"
    kept.parent.mkdir()
    kept.write_text("{}\n")
    (tmp_path / ledger.FILE).unlink()
    with Ledger(tmp_path, "name: s\n", "d1", fresh=fresh):
        assert not kept.exists() and (tmp_path / "trials").is_dir()
    assert (tmp_path / "discarded" / "1" / "trials" / "0000-1" / "steps-0.jsonl").exists()
    with Ledger(tmp_path, "name: s\n", "d1"):
        assert len(list((tmp_path / "discarded").iterdir())) == 1


def test_what_is_set_aside_takes_a_name_of_its_own_whatever_was_removed(tmp_path):
    for _ in range(3):
        Ledger(tmp_path, "name: s\n", "d1", fresh=True).close()
    shutil.rmtree(tmp_path / "discarded" / "1")
    Ledger(tmp_path, "name: s\n", "d1", fresh=True).close()
    assert sorted(path.name for path in (tmp_path / "discarded").iterdir()) == ["2", "3"]


def test_a_changed_study_is_not_continued_and_fresh_sets_the_old_one_aside(tmp_path):
    with begin(tmp_path) as book:
        book.record(measured(0, x=1.0))
        begun = book.history.begun
    with pytest.raises(AutotuneError, match="--fresh"):
        Ledger(tmp_path, "name: s\n", "d2")
    with begin(tmp_path) as book:
        assert book.history.begun == begun, "a study that goes on is the same one"
    with Ledger(tmp_path, "name: t\n", "d2", fresh=True) as book:
        assert not book.records and book.history.begun > begun
    assert ledger.read(tmp_path / "discarded" / "1").records.keys() == {0}
    assert (tmp_path / ledger.STUDY).read_text() == "name: t\n"


@pytest.fixture
def file_size_limit():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_leaves_no_partial_line(tmp_path, file_size_limit):
    with begin(tmp_path) as book:
        book.record(measured(0, x=1.0))
        content = book.path.read_bytes()
        file_size_limit(len(content) + 40)
        with pytest.raises(StoreUnwritable, match="make room"):
            book.record(measured(1, x=2.0))
        file_size_limit(resource.RLIM_INFINITY)
        assert book.path.read_bytes() == content and set(book.records) == {0}
        book.record(measured(1, x=2.0))
    assert set(ledger.read(tmp_path).records) == {0, 1}


def test_reading_needs_no_lock_and_no_study_is_said(tmp_path):
    with pytest.raises(NotFound, match="no study"):
        ledger.read(tmp_path)
    with begin(tmp_path) as book:
        book.record(measured(0, x=1.0))
        with book.path.open("ab") as stream:
            stream.write(b'{"event": "rec')
        assert set(ledger.read(tmp_path).records) == {0}


def test_ten_thousand_trials_open_in_seconds(tmp_path):
    with begin(tmp_path) as book:
        book.record(measured(0, **{f"metric_{i}": i * 1.1 for i in range(20)}))
    head, line = book.path.read_text().splitlines()
    event = json.loads(line)
    with book.path.open("w") as stream:
        stream.write(head + "\n")
        for number in range(10_000):
            event["record"]["number"] = number
            stream.write(json.dumps(event) + "\n")
    before = time.monotonic()
    assert len(ledger.read(tmp_path).records) == 10_000
    assert time.monotonic() - before < 5


KEY = {"model": "m", "engine": {"version": "1"}, "hardware": {"gpus": 1}, "workload": {"kind": "http"}, "env": {}, "options": {}}


def test_an_equal_trial_is_found_and_marked(tmp_path):
    key = cache.trial_key(**KEY, configuration=Configuration(engine="vllm", values={"a": 1}), fixed={"b": 2})
    assert key == cache.trial_key(**KEY, configuration=Configuration(engine="vllm", values={"a": 1, "b": 2}), fixed={})
    assert key != cache.trial_key(**KEY, configuration=Configuration(engine="vllm", values={"a": 2}), fixed={"b": 2})
    with begin(tmp_path / "one") as book:
        book.record(measured(4, x=1.0), key)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / ledger.FILE).write_text(f'"key": "{key}"\n{{}}\n')
    found = cache.find(tmp_path, key)
    assert found.reused_from == "one/4" and found.measurement == measured(4, x=1.0).measurement
    assert cache.find(tmp_path, key, skip="one") is None and cache.find(tmp_path, "other") is None


def test_trials_differ_by_what_the_engine_section_says_and_by_what_stands_in_named_files(tmp_path):
    asked = {"configuration": Configuration(engine="trl"), "fixed": {}}
    assert cache.trial_key(**{**KEY, "options": {"algorithm": "grpo"}}, **asked) != cache.trial_key(
        **{**KEY, "options": {"algorithm": "rloo"}}, **asked
    )
    trace, reward = tmp_path / "trace.jsonl", tmp_path / "reward.py"
    named = {**KEY, "workload": {"traffic": {"trace": str(trace)}}, "options": {"reward": f"{reward}:score"}}
    keys = []
    for text in ("one", "two"):
        trace.write_text(text)
        for body in ("return 1", "return 2"):
            reward.write_text(body)
            keys.append(cache.trial_key(**named, **asked))
    assert len(set(keys)) == 4
    assert cache.trial_key(**named, **asked) == keys[-1]


def test_a_failure_is_never_reused(tmp_path):
    failed = measured(0, x=1.0).model_copy(update={"outcome": Failed(kind=FailureKind.CRASHED, phase=Phase.START)})
    with begin(tmp_path / "one") as book:
        book.record(failed, "k")
    assert cache.find(tmp_path, "k") is None
