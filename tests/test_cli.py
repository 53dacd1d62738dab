"""The command line: every command, its exit codes, its JSON, and never a traceback for a user's mistake."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune import cli, doctor, engines, live, process, results, source, starter, view
from autotune.doctor import Finding
from autotune.engines.base import Identity
from autotune.errors import AutotuneError, MachineUnusable, MissingPrerequisite, NothingMeasured, StoreUnwritable, StudyBusy
from autotune.score import Score
from autotune.terminal import Plain, clean
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, TrialJob, TrialRecord

COMMANDS = ("run", "check", "show", "list", "export", "ui", "init", "doctor")
STUDY = """\
name: replay
engine: {kind: recorded}
workload: {kind: recorded, traffic: chat}
search_space: {include: recorded}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 4}
search: {sampler: random}
finalists: {count: 0}
tracking: {enabled: false}
"""
ALL_FAIL = STUDY.replace("recorded}\nworkload", "recorded, faults: {crashed: 1}}\nworkload").replace("replay", "lost")


def answer(*args):
    """Exit code, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["autotune", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def command_line(*args, env=None, **streams):
    """As `answer`, in a process of its own, as its user runs it."""
    command = [sys.executable, "-m", "autotune.cli", *map(str, args)]
    return subprocess.run(command, text=True, env={**os.environ, **(env or {})}, stderr=subprocess.PIPE, **streams)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a store in which the study `replay` has run."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "study.yaml").write_text(STUDY)
    code, out, err = answer("run", folder / "study.yaml", "--store", folder / "store", "--json")
    assert code == 0, err
    (folder / "run.json").write_text(out)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: autotune {command}" in " ".join(shown.output.split())


def test_every_command_is_tested_here():
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(COMMANDS)


def test_no_tracking_database_is_made_for_a_store_that_is_not_there(tmp_path):
    code, _, err = answer("ui", "--store", tmp_path / "typo")
    assert (code, err) == (2, f"The store {tmp_path / 'typo'} holds no study yet.\n")
    assert not (tmp_path / "typo").exists()


def test_the_pages_are_opened_without_the_jobs_that_leave_a_folder_in_shared_memory(kept, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "")
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION")
    begun = []
    monkeypatch.setattr(
        os, "execv", lambda path, command: begun.append((os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"], command))
    )
    assert CliRunner().invoke(cli.app, ["ui", "--store", str(kept / "store"), "--port", "5017"]).exit_code == 0
    ((jobs, command),) = begun
    assert jobs == "false" and "5017" in command


def test_run_reports_what_it_measured(kept):
    told = json.loads((kept / "run.json").read_text())
    assert told["study"] == "replay"
    assert len(told["trials"]) == 4
    assert told["default_trial"] == 0
    code, out, _ = answer("run", kept / "study.yaml", "--store", kept / "store")
    assert code == 0
    assert "The budget of 4 trials is spent." in out


def test_a_study_in_which_nothing_was_measured_ends_with_1(tmp_path):
    (tmp_path / "study.yaml").write_text(ALL_FAIL)
    code, out, err = answer("run", tmp_path / "study.yaml", "--store", tmp_path / "store")
    assert code == 1
    assert "crashed" in out
    assert "No trial was measured" in err


@pytest.mark.parametrize("format", [[], ["--json"]])
@pytest.mark.parametrize("command", [["check"], ["check", "--offline"], ["run"]])
def test_a_wrong_study_is_answered_with_2_and_its_line(tmp_path, command, format):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("trials: 4", "trials: -4"))
    code, out, err = answer(*command, path, "--store", tmp_path / "store", *format)
    assert code == 2
    assert not (tmp_path / "store").exists()
    if format:
        (mistake,) = json.loads(out)["mistakes"]
        assert (mistake["file"], mistake["line"], mistake["path"]) == (str(path), 6, "budget.trials")
    else:
        assert err == f"{path}:6: budget.trials: This must be at least 1. Found -4.\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["check", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["show", "nothing"], "nothing"),
        (["show", "repley"], "replay"),
        (["show", "replay", "--trial", "99"], "99"),
        (["export", "replay", "--to", "shel"], "shell"),
        (["export", "replay", "--to", "shell", "--pick", "worst"], "knee, best:METRIC"),
        (["export", "replay", "--to", "shell", "--pick", "best:ttft"], "ttft_ms"),
        (["export", "replay", "--to", "shell"], "renders vllm, sglang"),
        (["export", "replay", "--to", "shell", "--trial", "99"], "99"),
        (["init", "x.yaml", "--engine", "vlm"], "vllm"),
        (["init", "x.yaml", "--use", "chatt"], "chat"),
    ],
)
def test_what_is_not_there_is_answered_with_2_and_what_is(kept, args, says):
    code, _, err = answer(*args, *(["--store", kept / "store"] if args[0] != "init" else []))
    assert code == 2
    assert says in err
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize("args", [["nonsense"], ["run"], ["show", "replay", "--trial", "many"], ["ui", "--port", "0"]])
def test_a_wrong_command_line_is_answered_with_2(args):
    assert answer(*args)[0] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NothingMeasured("x"), 1), (AutotuneError("x"), 2), (MissingPrerequisite("x"), 3), (StudyBusy("x"), 4),
        (StoreUnwritable("x"), 5), (MachineUnusable("x"), 6), (KeyboardInterrupt(), 130),
    ],
)  # fmt: skip
def test_each_problem_has_its_exit_code(monkeypatch, capsys, error, code):
    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert f"{code} " in cli.__doc__


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_json_of_every_reading_command(kept):
    store = ["--store", kept / "store"]
    listed = json.loads(answer("list", "--json", *store)[1])
    assert [row["study"] for row in listed] == ["replay"]
    assert len(json.loads(answer("show", "replay", "--json", *store)[1])["trials"]) == 4
    assert json.loads(answer("show", "replay", "--json", "--trial", "0", *store)[1])["number"] == 0
    assert json.loads(answer("check", kept / "study.yaml", "--json", *store)[1])["study"] == "replay"


def test_a_kept_study_is_listed_and_shown(kept):
    store = ["--store", kept / "store"]
    assert "replay" in answer("list", *store)[1]
    code, out, _ = answer("show", kept / "study.yaml", *store)
    assert code == 0
    assert "output_tokens_per_s" in out
    assert "Trial 1" in answer("show", "replay", "--trial", "1", *store)[1]


def test_a_report_page_is_written(kept, tmp_path):
    code, _, err = answer("show", "replay", "--page", tmp_path / "page.html", "--store", kept / "store")
    assert code == 0, err
    assert "<html" in (tmp_path / "page.html").read_text().lower()


def test_an_empty_store_is_a_sentence(tmp_path):
    code, out, _ = answer("list", "--store", tmp_path / "none")
    assert code == 0
    assert "holds no study yet" in out
    assert json.loads(answer("list", "--json", "--store", tmp_path / "none")[1]) == []


def test_the_store_can_come_from_the_environment(kept, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(kept / "store"))
    assert "replay" in answer("list")[1]


def test_as_its_user_runs_it_a_mistake_has_no_traceback(kept):
    done = command_line("show", "nothing", env={"AUTOTUNE_STORE": str(kept / "store")}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "nothing" in done.stderr


@pytest.mark.parametrize("args", [["list"], ["show", "replay"], ["list", "--json"]])
def test_a_reader_that_goes_away_is_no_error(kept, args):
    read, write = os.pipe()
    os.close(read)
    done = command_line(*args, "--store", kept / "store", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("engine", ["recorded", "sglang", "trl", "verl", "vllm"])
@pytest.mark.parametrize("use", starter.USES)
def test_a_study_from_init_passes_its_check(tmp_path, monkeypatch, engine, use):
    monkeypatch.setattr(process, "start", lambda *args, **kwargs: pytest.fail("A process was started."))
    path = tmp_path / "My First Study!.yaml"
    runner = CliRunner()
    assert runner.invoke(cli.app, ["init", str(path), "--engine", engine, "--use", use]).exit_code == 0
    checked = runner.invoke(cli.app, ["check", str(path), "--offline", "--store", str(tmp_path / "store")])
    assert checked.exception is None, checked.exception
    assert "Search space" in checked.output


@pytest.mark.parametrize("use", starter.USES)
def test_a_study_from_init_asks_for_nothing_that_its_own_check_doubts(tmp_path, use):
    """A climb's latencies are those of drowned rates too: as a goal they punish what climbs further."""
    path = tmp_path / "s.yaml"
    assert answer("init", path, "--use", use)[0] == 0
    code, out, _ = answer("check", path, "--offline", "--store", tmp_path / "store")
    assert code == 0 and "Note: " not in out.replace("Note: 10 trials are few", "")


def test_a_goal_over_every_rate_of_a_climb_is_noted(tmp_path):
    path = tmp_path / "s.yaml"
    assert answer("init", path)[0] == 0
    path.write_text(path.read_text().replace("slo_request_rate", "output_tokens_per_s"))
    noted = " ".join(answer("check", path, "--offline", "--store", tmp_path / "store")[1].split())
    assert "Note: output_tokens_per_s: this is taken over every rate that the climb tries" in noted


def test_a_percentile_of_a_few_requests_is_noted(tmp_path):
    path = tmp_path / "s.yaml"
    text = (Path(__file__).parents[1] / "studies" / "quickstart.yaml").read_text()
    assert "ttft_ms.p90 @ request_rate=4" in text and "measure_s: 7" in text

    def notes(text):
        path.write_text(text)
        return " ".join(answer("check", path, "--offline", "--store", tmp_path / "store")[1].split())

    assert "it is the slowest one of them" not in notes(text)
    few = text.replace("ttft_ms.p90 @", "ttft_ms.p99 @")
    assert "Note: ttft_ms.p99 @ request_rate=4: this rests on about 28 requests" in notes(few)
    assert "Make the window 3.6 times as long" in notes(few)
    assert "it is the slowest one of them" not in notes(few.replace("measure_s: 7", "measure_s: 25.5"))


def test_ui_says_that_a_port_is_in_use(kept):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = answer("ui", "--store", kept / "store", "--port", port)
    assert (code, err.strip()) == (2, f"The port {port} is in use; choose another one with --port.")


def test_init_says_when_no_space_ships_for_an_engine(tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.spaces.available", dict)
    code, _, err = answer("init", tmp_path / "s.yaml")
    assert code == 2
    assert "No search space ships for the engine 'vllm'" in err


@pytest.mark.parametrize("model", ["org/model", "#1", "a: b", "C:", "'quoted'"])
def test_init_writes_any_model_name_so_that_yaml_reads_it_back(tmp_path, model):
    starter.write(tmp_path / "s.yaml", engine="vllm", model=model, use="chat", force=False)
    assert cli.name_of(str(tmp_path / "s.yaml")) == "s"
    from autotune import study

    assert study.load(tmp_path / "s.yaml")[0].engine[0]["model"] == model


def test_init_overwrites_only_when_told(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("mine")
    code, _, err = answer("init", path)
    assert code == 2
    assert "--force" in err
    assert path.read_text() == "mine"
    assert answer("init", path, "--force")[0] == 0


@pytest.mark.parametrize("engine", ["trl", "sglang"])
def test_a_first_study_names_the_environment_that_is_there(tmp_path, monkeypatch, engine):
    """What `make engine-NAME` made is of no use to a study that does not name it."""
    monkeypatch.chdir(tmp_path)
    path, own = tmp_path / "s.yaml", Path(".venvs") / engine / "bin" / "python"
    starter.write(path, engine=engine, model=None, use="chat", force=False)
    assert "python" not in source.read(path).data["engine"]
    own.parent.mkdir(parents=True)
    own.touch()
    starter.write(path, engine=engine, model=None, use="chat", force=True)
    assert source.read(path).data["engine"]["python"] == str(own)


def test_doctor_tells_what_a_training_engine_needs_to_be_told(monkeypatch):
    """On a machine without a GPU it trains where the study says so."""
    trained = engines.get("trl")

    def identity(self):
        if not self.options.cpu:
            raise MissingPrerequisite("no GPU")
        return Identity(kind="trl", version="1.16.0", python="3.11", device="cpu")

    monkeypatch.setattr(trained, "identity", identity)
    (finding,) = (one for one in doctor._engines() if one.name == "trl")
    assert finding.usable and "with engine.cpu: true" in finding.detail


def test_doctor_asks_an_engine_once_in_each_way_that_a_study_could_name_it(monkeypatch, tmp_path):
    """To ask starts an interpreter, and a GPU is better than none wherever it is found."""
    asked = []
    for kind in ("trl", "sglang"):

        def identity(self):
            asked.append((self.options.kind, self.options.python is not None, getattr(self.options, "cpu", False)))
            raise MissingPrerequisite("not here")

        monkeypatch.setattr(engines.get(kind), "identity", identity)
    monkeypatch.setattr(engines, "kinds", lambda: ("trl", "sglang"))
    monkeypatch.setattr(doctor._environment, "usual", lambda kind: tmp_path)
    assert not any(finding.usable for finding in doctor._engines())
    ways = [("trl", False, False), ("trl", True, False), ("trl", False, True), ("trl", True, True)]
    assert asked == [*ways, ("sglang", False, False), ("sglang", True, False)]


def test_doctor_says_how_to_install_what_is_missing(capsys, monkeypatch):
    finding = Finding("engine", "vllm", False, "is not usable here.", "pip install vllm")
    monkeypatch.setattr(view, "console", Plain(width=200))
    view.print_findings([finding])
    assert "→ pip install vllm" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_looks_at_everything(kept):
    code, out, _ = answer("doctor", "--json", "--store", kept / "store")
    findings = json.loads(out)
    assert {"machine", "gpu", "engine", "package", "store"} <= {finding["room"] for finding in findings}
    assert {finding["name"] for finding in findings if finding["room"] == "engine"} == set(engines.kinds())
    assert all(finding["remedy"] for finding in findings if not finding["usable"])
    assert code == 0


@pytest.mark.parametrize("usable", [True, False])
def test_doctor_fails_where_no_engine_is_usable(monkeypatch, usable):
    monkeypatch.setattr("autotune.doctor.examine", lambda store: [Finding("engine", "vllm", usable, "x")])
    assert CliRunner().invoke(cli.app, ["doctor"]).exit_code == (0 if usable else 3)


NASTY = "[bold red]no[/] [/nothing] \x1b[31mred\x1b[0m \x1b]0;title\x07 \x1bc \x9b2J \r\b[link=file:///x]y"


def test_clean_leaves_nothing_for_a_terminal_to_obey():
    assert clean(NASTY) == "[bold red]no[/] [/nothing] red   2J [link=file:///x]y"
    assert clean("a\tb\nc é ✓") == "a\tb\nc é ✓"


def failed(number=1):
    outcome = Failed(kind=FailureKind.CRASHED, phase=Phase.START, evidence=(NASTY,), advice=NASTY)
    configuration = Configuration(engine="vllm", values={"chat_template": NASTY})
    return TrialRecord(number=number, configuration=configuration, origin=Origin.SEARCH, outcome=outcome, command=(NASTY,))


@pytest.mark.parametrize("terminal", [True, False])
def test_what_an_engine_says_cannot_style_the_terminal(monkeypatch, small_study, terminal):
    shown = io.StringIO()
    monkeypatch.setattr(view, "console", Plain(file=shown, force_terminal=terminal, width=300, no_color=True))
    view.print_trial(results.StudyResults(small_study, (failed(),)), failed())
    view.console.print(view.table(NASTY, ("a [b]", NASTY), [(NASTY, NASTY)]))
    assert shown.getvalue().count("[bold red]no[/]") >= 5
    assert not any(sequence in shown.getvalue() for sequence in ("\x1b[31m", "\x1b]0", "\x1bc", "\x9b", "\r"))


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_an_engines_words_as_words(monkeypatch, terminal):
    shown = io.StringIO()
    monkeypatch.setattr(live, "Plain", lambda **kwargs: Plain(file=shown, force_terminal=terminal, width=300, no_color=True))
    reporter = live.Live("small", ("output_tokens_per_s",))
    job = TrialJob(number=1, configuration=failed().configuration)
    reporter.expect(0, 3, 0, 1)
    reporter.started(job)
    reporter.progress(1, NASTY, 0.5)
    reporter.bars.refresh()
    reporter.finished(failed(), failed().outcome)
    reporter.close()
    assert "crashed during start" in shown.getvalue()
    assert not any(sequence in shown.getvalue() for sequence in ("\x1b[31m", "\x1b]0", "\x1bc", "\x9b"))


def test_a_line_without_a_word_is_not_shown_as_the_reason(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(live, "Plain", lambda **kwargs: Plain(file=shown, width=300, no_color=True))
    reporter, record = live.Live("small", ()), failed()
    outcome = record.outcome.model_copy(update={"evidence": ("KeyError: 'answer'", "-" * 40)})
    reporter.finished(record.model_copy(update={"outcome": outcome}), outcome)
    reporter.close()
    assert "during start: KeyError: 'answer'" in shown.getvalue() and "----" not in shown.getvalue()


def test_in_a_log_an_event_is_one_line_and_what_is_left_out_of_it_is_marked(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(live, "Plain", lambda **kwargs: Plain(file=shown, width=80, no_color=True))
    reporter, record = live.Live("small", ()), failed()
    outcome = record.outcome.model_copy(update={"evidence": ("word " * 60,)})
    reporter.finished(record.model_copy(update={"outcome": outcome}), outcome)
    reporter.close()
    (line,) = shown.getvalue().strip().splitlines()
    assert len(line) > 160 and "wo...  [vllm: " in line


def test_ctrl_c_outside_a_trial_is_answered_too(monkeypatch, capsys):
    """While a study's exports are written nobody watches the signals; silence would look like an end."""

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "Interrupted; run it again to continue." in capsys.readouterr().err


def test_a_line_names_the_constraint_that_a_trial_breaks(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(live, "Plain", lambda **kwargs: Plain(file=shown, width=300, no_color=True))
    reporter = live.Live("small", ("output_tokens_per_s",), ("ttft_ms.p99 <= 500", "tpot_ms.p95 <= 50"))
    record = failed().model_copy(update={"outcome": Measured(measurement=Measurement(rows=()))})
    reporter.finished(record, Score(values=(100.0,), violations=(0.25, -0.5)))
    reporter.close()
    assert "output_tokens_per_s 100 (breaks ttft_ms.p99 <= 500 by 25.0%)" in shown.getvalue()


def test_the_time_left_follows_what_trials_took():
    reporter = live.Live("small", ())
    reporter.expect(0, 11, 0, 1)
    assert reporter._left() == "", "nothing is known yet of how long a trial takes"
    reporter.spent, reporter.done = [30.0, 30.0, 90.0], 3
    assert reporter._left() == ", about 4 min left"
    reporter.done = 11
    assert reporter._left() == ""
    reporter.close()


def test_the_time_left_holds_the_finalists_at_a_whole_trials_seconds_and_what_runs_at_once():
    reporter = live.Live("small", ())
    reporter.expect(4, 6, 8, 2)
    reporter.spent, reporter.whole = [30.0, 30.0, 90.0], [90.0]
    assert reporter._left() == ", about 8 min left", "(6 x 30 s + 8 x 90 s) / 2"
    reporter.done = 14
    assert reporter._left() == ", about 3 min left", "4 x 90 s / 2"
    reporter.close()


def test_a_trial_to_export_is_named_once(store):
    code, _, err = answer("export", "small", "--to", "shell", "--trial", "1", "--pick", "knee", "--store", store)
    assert code == 2 and "give one of them" in err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_a_measured_trial_is_exported(store, tmp_path):
    code, out, err = answer("export", "small", "--to", "shell", "--out", tmp_path / "out", "--no-prove", "--store", store)
    assert code == 0, err
    files = out.split()
    assert files
    assert all(Path(file).is_file() for file in files)
    assert answer("export", "small", "--to", "shell", "--trial", "6", "--no-prove", "--store", store)[0] == 1
