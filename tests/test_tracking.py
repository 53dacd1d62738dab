"""MLflow shows what the ledger holds: all of it, once, without secrets, whatever the server does meanwhile."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autotune import process, results
from autotune.errors import AutotuneError, NotFound
from autotune.ledger import Ledger
from autotune.study import TrackingSpec
from autotune.tracking import Tracker, default_uri, payload, receive, shown, state
from autotune.trial import Row

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SECRETS = (b"hf_abcdefghijklmnopqrstuvwx", b"sk-abcdefghijklmnopqrstuvwx")


def runs_of(uri):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return client, list(client.search_runs(experiments, max_results=1000))


def children(uri):
    return {run.data.tags["autotune.key"]: run for run in runs_of(uri)[1] if run.data.tags["autotune.role"] == "trial"}


def assert_each_trial_stands_once(uri):
    keys = [run.data.tags.get("autotune.key", "parent") for run in runs_of(uri)[1]]
    assert sorted(keys) == sorted([*(f"{number}/1" for number in range(7)), "parent"])


def send(store, study, uri=None, **end):
    tracker = Tracker(store, study, uri)
    tracker.study_started()
    tracker.finished(**end)
    try:
        assert tracker.flush(90), tracker.status()
    finally:
        tracker.close()
    return tracker


@pytest.fixture(scope="module")
def sent(tmp_path_factory, keep_small):
    """A store whose study was sent to its own SQLite database. Read only."""
    folder, report = tmp_path_factory.mktemp("sent"), tmp_path_factory.mktemp("report") / "report.html"
    report.write_text("<p>token=hf_abcdefghijklmnopqrstuvwx</p>")
    tracker = send(folder, keep_small(folder), files=[report])
    assert tracker.status() is None
    return folder


def test_every_trial_is_a_child_run_with_its_outcome(sent):
    uri = default_uri(sent)
    assert_each_trial_stands_once(uri)
    found = children(uri)
    parent = next(run for run in runs_of(uri)[1] if run.data.tags["autotune.role"] == "study")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert "times the default" in parent.data.tags["mlflow.note.content"]
    assert found["6/1"].info.status == "FAILED"
    assert found["6/1"].data.tags["autotune.kind"] == "out-of-memory"
    assert "Lower it." in found["6/1"].data.tags["mlflow.note.content"]
    assert found["1/1"].data.tags["autotune.front"] == "member"
    assert found["3/1"].data.tags["autotune.front"] == "no"
    assert found["3/1"].data.tags["autotune.feasible"] == "no"
    assert found["0/1"].data.tags["autotune.origin"] == "default"


def test_parameters_compare_across_trials_the_default_among_them(sent):
    found = children(default_uri(sent))
    assert {key: run.data.params["max_num_seqs"] for key, run in found.items()} == {
        "0/1": "128", "1/1": "64", "2/1": "8", "3/1": "256", "4/1": "128", "5/1": "64", "6/1": "1024",
    }  # fmt: skip
    assert found["0/1"].data.params["block_size"] == "16"


def test_metrics_carry_the_load_level_as_step_and_a_failed_trial_has_none(sent):
    client, _ = runs_of(default_uri(sent))
    found = children(default_uri(sent))
    history = client.get_metric_history(found["1/1"].info.run_id, "request_rate/output_tokens_per_s")
    assert [(point.step, point.value) for point in history] == [(2, 75.0), (4, 150.0)]
    assert found["1/1"].data.metrics["peak_memory_gib"] == 8.4
    assert found["3/1"].data.metrics["violation of ttft_ms.p99 at most 500 at request_rate 4"] == pytest.approx(0.8)
    assert set(found["6/1"].data.metrics) == {"seconds/start", "seconds/measure", "seconds/stop"}


def test_the_front_is_a_table_and_a_figure_and_hypervolume_a_curve(sent):
    client, all_runs = runs_of(default_uri(sent))
    parent = next(run for run in all_runs if run.data.tags["autotune.role"] == "study")
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {
        "front.html", "front.json", "notes.json", "report.html", "study.yaml",
    }  # fmt: skip
    volume = results.load("small", sent).hypervolume()
    curve = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert {point.step: point.value for point in curve} == pytest.approx(volume.values)
    assert "nadir" in parent.data.tags["autotune.hypervolume_reference"]


def test_mlflow_reads_the_front_as_its_own_table(sent, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", default_uri(sent))
    client, all_runs = runs_of(default_uri(sent))
    parent = next(run for run in all_runs if run.data.tags["autotune.role"] == "study")
    table = client.load_table(parent.info.experiment_id, "front.json", run_ids=[parent.info.run_id])
    assert set(table["trial"]) == {0, 1, 2}


def test_no_secret_is_anywhere_in_what_was_sent(sent):
    kept = [sent / "mlflow.db", *(path for path in (sent / "mlartifacts").rglob("*") if path.is_file())]
    assert len(kept) > 20
    for path in kept:
        for secret in SECRETS:
            assert secret not in path.read_bytes(), f"{secret!r} stands in {path}"


def test_a_study_reads_back_from_mlflow_as_from_its_ledger(sent):
    ours, theirs = results.load("small", sent), receive.read(default_uri(sent), "small")
    assert theirs.trials.equals(ours.trials)
    assert theirs.rows.equals(ours.rows)
    assert theirs.front.equals(ours.front)
    assert [note.kind for note in theirs.notes] == ["cut"]


def test_an_unknown_study_in_mlflow_is_answered(sent):
    with pytest.raises(NotFound, match="small"):
        receive.read(default_uri(sent), "other'; --")


def test_a_dead_server_is_answered_when_reading(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(AutotuneError, match="did not give study"):
        receive.read("http://127.0.0.1:9", "small")


def test_sending_again_with_the_acknowledgements_lost_adds_nothing(store, small_study):
    uri = default_uri(store)
    send(store, small_study)
    before = {run.info.run_id for run in runs_of(uri)[1]}
    state.state_path(store / "small").unlink()
    send(store, small_study)
    assert {run.info.run_id for run in runs_of(uri)[1]} == before
    client, _ = runs_of(uri)
    history = client.get_metric_history(children(uri)["1/1"].info.run_id, "request_rate/output_tokens_per_s")
    assert len(history) == 2


@pytest.mark.slow
def test_a_sender_killed_at_any_moment_loses_and_doubles_nothing(store, small_study, monkeypatch):
    monkeypatch.setattr("autotune.tracking._RESTART_S", 0.0)
    tracker = Tracker(store, small_study)
    tracker.study_started()
    for pause in (0.5, 3.5, 0.3, 4.0, 4.3):
        time.sleep(pause)
        os.kill(tracker._process.pid, signal.SIGKILL)
        tracker._process.popen.wait(5)
        tracker.study_started()
    tracker.finished()
    try:
        assert tracker.flush(90), tracker.status()
    finally:
        tracker.close()
    assert_each_trial_stands_once(default_uri(store))


@pytest.mark.slow
def test_a_fresh_study_of_the_same_name_is_another_parent(store, small_study, make_record):
    send(store, small_study)
    with Ledger(store / "small", (store / "small" / "study.yaml").read_text(), "digest", fresh=True) as ledger:
        tracker = Tracker(store, small_study)
        tracker.study_started()
        ledger.record(make_record(0))
        tracker.trial(make_record(0))
        assert tracker.behind == 1
        assert tracker.flush(90), tracker.status()
        tracker.close()
    assert len([run for run in runs_of(default_uri(store))[1] if run.data.tags["autotune.role"] == "study"]) == 2


def test_the_sender_ends_with_its_driver(store, tmp_path):
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from autotune import study as studies
        from autotune.tracking import Tracker
        study, _ = studies.load(Path({str(store)!r}) / "small" / "study.yaml")
        tracker = Tracker(Path({str(store)!r}), study)
        tracker.study_started()
        print(tracker._process.pid, flush=True)
        time.sleep(60)
    """)
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    sender = int(driver.stdout.readline())
    time.sleep(1.0)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 15
    while Path(f"/proc/{sender}/cmdline").exists() and Path(f"/proc/{sender}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the sender outlived its driver"
        time.sleep(0.1)


def test_nothing_raises_without_a_store(small_study, tmp_path, make_record):
    tracker = Tracker(tmp_path / "nowhere", small_study, "http://user:secret@127.0.0.1:9")
    tracker.study_started()
    tracker.trial(make_record(0))
    assert tracker.flush(0.1) is False
    tracker.finished()
    assert tracker.behind == 1
    assert "1 trial behind" in tracker.status()
    assert "secret" not in tracker.status()
    tracker.close()


def test_a_server_that_is_down_costs_the_run_loop_nothing(store, small_study, make_record, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(store, small_study, f"http://127.0.0.1:{process.free_port()}")
    began = time.monotonic()
    tracker.study_started()
    for number in range(7):
        tracker.trial(make_record(number))
    tracker.finished()
    assert time.monotonic() - began < 1.0
    try:
        assert tracker.flush(60) is False
    finally:
        tracker.close()
    assert tracker.behind == 7
    assert "nothing is lost" in tracker.status()


class Weather(BaseHTTPRequestHandler):
    """Stands before a real MLflow server and passes on, or does what a bad server does."""

    protocol_version = "HTTP/1.1"
    mood = "good"
    port = 0
    seen = 0

    def _pass(self):
        type(self).seen += 1
        mood, body = type(self).mood, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mood == "error":
            return self._answer(500, b"{}", {})
        if mood == "slow":
            time.sleep(4)
            return self._answer(503, b"", {})
        upstream = http.client.HTTPConnection("127.0.0.1", type(self).port, timeout=30)
        upstream.request(self.command, self.path, body, {**dict(self.headers), "Host": f"127.0.0.1:{type(self).port}"})
        answer = upstream.getresponse()
        data, headers = answer.read(), {"Content-Type": answer.headers.get("Content-Type", "application/json")}
        upstream.close()
        if mood == "late" and "runs/create" in self.path:
            time.sleep(4)
        return self._answer(answer.status, data, headers)

    def _answer(self, status, data, headers):
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, *args):
        pass


@pytest.fixture
def weather(tmp_path):
    """The address of a real MLflow server behind `Weather`."""
    port = process.free_port()
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    argv += ["--artifacts-destination", str(tmp_path / "server"), "--host", "127.0.0.1", "--port", str(port)]
    log, tag = tmp_path / "server.log", process.make_tag(tmp_path, "test", "mlflow")
    with process.start(argv, env={"MLFLOW_DISABLE_TELEMETRY": "true"}, cwd=tmp_path, log=log, tag=tag) as server:
        deadline = time.monotonic() + 90
        while not _healthy(port):
            assert server.alive() and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.3)
        Weather.port, Weather.mood, Weather.seen = port, "good", 0
        front = ThreadingHTTPServer(("127.0.0.1", 0), Weather)
        front.daemon_threads = True
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{front.server_address[1]}"
        front.shutdown()
        front.server_close()


def _healthy(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_what_a_bad_server_missed_arrives_once_when_it_is_good_again(weather, store, small_study, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    tracker = Tracker(store, small_study, weather)
    tracker.study_started()
    try:
        for mood in ("error", "slow", "late"):
            Weather.mood, before = mood, Weather.seen
            assert tracker.flush(25) is False, mood
            assert Weather.seen > before, "the server was asked"
            assert tracker.behind > 0
            assert tracker.status() is not None
        Weather.mood = "good"
        tracker.finished()
        deadline = time.monotonic() + 120
        while not tracker.flush(30):
            assert time.monotonic() < deadline, tracker.status()
    finally:
        tracker.close()
    assert tracker.status() is None
    assert_each_trial_stands_once(weather)
    assert receive.read(weather, "small").trials.equals(results.load("small", store).trials)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ({"request_rate": 10}, ("request_rate", 10)),
        ({"request_rate": 0.5}, ("request_rate by row", 3)),
        ({"name": "a"}, ("row", 3)),
    ],
)
def test_a_level_becomes_a_step(level, expected):
    assert payload._step(Row(level=level, metrics={}), 3) == expected


@pytest.mark.parametrize("name", ["ttft_ms.p99 <= 500 @ request_rate=40", "a\nb\u00e9", "x" * 400, "sps"])
def test_metric_names_are_what_mlflow_takes(name):
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(payload.metric_key(name))


def test_masking_reaches_every_depth():
    value = {"env": [{"HF_TOKEN": "x", "url": "http://u:p@h/"}], "max_tokens": "64", "n": 1}
    assert payload.masked(value) == {"env": [{"HF_TOKEN": "***", "url": "http://***@h/"}], "max_tokens": "64", "n": 1}
    assert json.dumps(payload.masked(value))


def test_what_is_missing_can_be_sent_by_hand(store):
    done = process.run([sys.executable, "-m", "autotune.tracking", str(store / "small"), "--once"], 120)
    assert done.returncode == 0, done.stderr
    assert_each_trial_stands_once(default_uri(store))


def test_a_database_whose_making_was_cut_short_is_made_anew(store):
    """MLflow cannot take its own steps up again: the store would have had no MLflow for good."""
    command = [sys.executable, "-m", "autotune.tracking", str(store / "small"), "--once"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as cut:
        being_made = (store / "mlflow.db", store / ".mlflow.db.new")
        while not any(one.exists() and one.stat().st_size > 200_000 for one in being_made) and cut.poll() is None:
            time.sleep(0.005)
        cut.kill()
    assert process.run(command, 120).returncode == 0
    assert_each_trial_stands_once(default_uri(store))
    assert [one.name for one in store.glob("*mlflow.db*")] == ["mlflow.db"], "nothing is left beside it"


def test_sending_what_is_no_study_by_hand_is_answered(tmp_path):
    done = process.run([sys.executable, "-m", "autotune.tracking", str(tmp_path), "--once"], 120)
    assert done.returncode == 2
    assert "study.yaml" in done.stderr


def test_a_parent_run_that_a_user_deleted_comes_back_with_all_its_trials(store, small_study):
    uri = default_uri(store)
    send(store, small_study)
    client, all_runs = runs_of(uri)
    client.delete_run(next(run.info.run_id for run in all_runs if run.data.tags["autotune.role"] == "study"))
    send(store, small_study)
    assert_each_trial_stands_once(uri)
    parent = next(run.info.run_id for run in runs_of(uri)[1] if run.data.tags["autotune.role"] == "study")
    assert {run.data.tags["mlflow.parentRunId"] for run in children(uri).values()} == {parent}


def test_where_the_trials_are_shown_is_said_of_the_server_that_has_them(tmp_path):
    """`autotune ui` opens the store's own database, in which a study with a server of its own is not."""
    assert shown(tmp_path, TrackingSpec()) == f"Compare the trials in MLflow: autotune ui --store {tmp_path}"
    said = shown(tmp_path, TrackingSpec(uri="http://me:hush@host:5000", experiment="nightly"))
    assert "experiment 'nightly' at http://***@host:5000" in said and "autotune ui" not in said
