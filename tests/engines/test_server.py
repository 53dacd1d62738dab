"""The serving session: readiness, phases, early death, whose port it is, and a stop that leaves nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import process
from autotune.engines._server import Dialect, ServingSession, decisive
from autotune.engines.base import Context, Diagnosis, EngineOptions, Launch
from autotune.trial import FailureKind, Phase, TrialFailed

FAKE = Path(__file__).with_name("fake_server.py")


def diagnose(log, returncode):
    if "OutOfMemory" in log:
        return Diagnosis(kind=FailureKind.OUT_OF_MEMORY, evidence=("3 GiB are missing",), advice="Take less.")
    return None


DIALECT = Dialect(
    milestones=(("imports", re.compile("imports are done")), ("never", re.compile("not written")), ("load", re.compile("loaded"))),
    fatal=re.compile("^FATAL"),
    confirm=lambda ask, log: {"effective": ask("/facts"), "absent": ask("/nothing")},
    diagnose=diagnose,
    reset="/reset",
)


@pytest.fixture
def session(tmp_path):
    started = []

    def start(mode, port=None, timeout_s=20.0, dialect=DIALECT, stop_timeout_s=5):
        port = port or process.free_port()
        folder = tmp_path / f"trial-{len(started)}"
        folder.mkdir()
        tag = process.make_tag(tmp_path, "test", 0)
        context = Context(study="test", trial=0, tag=tag, folder=folder, scratch=tmp_path, cache=tmp_path)
        launch = Launch(argv=(sys.executable, str(FAKE), str(port), mode), endpoint=f"http://127.0.0.1:{port}")
        options = EngineOptions(kind="vllm", model="m", start_timeout_s=timeout_s, stop_timeout_s=stop_timeout_s)
        started.append((ServingSession(launch, context, options, dialect, "m"), tag))
        return started[-1][0]

    yield start
    for one, tag in started:
        one.stop()
        assert process.tagged(tag) == []


def failure(session):
    with pytest.raises(TrialFailed) as caught:
        session.wait_ready()
    return caught.value.failed


def test_it_becomes_ready_and_says_where_its_time_went(session):
    one = session("serves")
    facts = one.wait_ready()
    assert facts["effective"] == {"max_num_seqs": 7}
    assert facts["absent"] is None
    assert list(facts["seconds"]) == ["imports", "load", "serve"]
    assert facts["seconds"]["load"] >= 0.2
    assert one.reset_caches()
    one.check_alive()
    assert one.resources()["peak_memory_gib"] > 0
    first = one.stop()
    assert one.stop()["returncode"] == first["returncode"]
    assert "survivors" not in first


def test_one_that_lingers_is_killed_at_once_and_others_may_take_their_time(session):
    one = session("lingers", dialect=replace(DIALECT, lingers=True), stop_timeout_s=60)
    one.wait_ready()
    assert one.stop()["killed"] == 1
    another = session("goes", stop_timeout_s=60)
    another.wait_ready()
    assert another.stop()["killed"] == 0


def test_an_engine_that_will_not_reset_says_so(session):
    one = session("no-reset")
    one.wait_ready()
    assert not one.reset_caches()


def test_death_before_serving_is_told_with_its_last_words(session):
    failed = failure(session("dies"))
    assert (failed.kind, failed.phase) == (FailureKind.CRASHED, Phase.START)
    assert "ValueError: this cannot work" in failed.evidence


def test_a_fatal_line_ends_the_wait_at_once(session):
    before = time.monotonic()
    failed = failure(session("fatal", timeout_s=60))
    assert (failed.kind, failed.evidence) == (FailureKind.OUT_OF_MEMORY, ("3 GiB are missing",))
    assert time.monotonic() - before < 15


def test_a_server_that_never_serves_times_out(session):
    failed = failure(session("hangs", timeout_s=1.0))
    assert failed.kind is FailureKind.START_TIMEOUT
    assert "start_timeout_s" in failed.advice


def test_death_while_serving_is_noticed(session):
    one = session("serves")
    one.wait_ready()
    one._process.popen.kill()
    one._process.popen.wait()
    with pytest.raises(TrialFailed) as caught:
        one.check_alive()
    assert (caught.value.failed.kind, caught.value.failed.phase) == (FailureKind.CRASHED, Phase.MEASURE)


def test_a_stranger_on_the_port_is_not_taken_for_the_engine(session):
    port = process.free_port()
    with subprocess.Popen([sys.executable, str(FAKE), str(port), "serves"], stdout=subprocess.DEVNULL) as stranger:
        try:
            while process.port_listener(port) is None:
                time.sleep(0.05)
            failed = failure(session("hangs", port=port))
        finally:
            stranger.kill()
    assert failed.kind is FailureKind.MACHINE_FAULT, "another port would do, so that the search has learnt nothing"
    assert str(stranger.pid) in failed.evidence[0]


def test_evidence_is_bare_distinct_and_short():
    lines = ["(EngineCore pid=7) ERROR 11-21 12:20:39 [core.py:9] ValueError: x", "ValueError: x", "ValueError: " + "y" * 900]
    found = decisive(lines, re.compile("ValueError"))
    assert found[0] == "ValueError: x"
    assert len(found) == 2
    assert len(found[1]) == 500
