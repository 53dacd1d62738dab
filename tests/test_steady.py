"""A number from an unsteady window is shown with that fact wherever it stands; an invalid level never without its reason."""

from __future__ import annotations

import pytest

from autotune import figures, finalists, results, tables, view
from autotune.engines.base import Identity
from autotune.errors import NothingMeasured
from autotune.exporters.base import Winner
from autotune.ledger import Ledger
from autotune.live import Live
from autotune.terminal import Plain
from autotune.tracking import payload
from autotune.trial import Configuration, Measured, Row

WHY = "Requests piled up: 3 were under way at the window's start and 90 at its end."


def changed(record, **fields):
    """The record with its last row changed: the one that every objective and constraint of the study reads."""
    measurement = record.outcome.measurement
    rows = (*measurement.rows[:-1], measurement.rows[-1].model_copy(update=fields))
    facts = {"levels": [{"window_s": 4.0, "finished_in_window": 33}] * 2}
    outcome = Measured(measurement=measurement.model_copy(update={"rows": rows, "facts": facts}))
    return record.model_copy(update={"outcome": outcome})


@pytest.fixture
def study(small_study, make_record):
    drifting = changed(make_record(1), unsteady=WHY)
    return results.StudyResults(small_study, (make_record(0), drifting, make_record(2)))


def test_tables_and_gain_say_which_trials_were_not_steady(study):
    outcomes = {row[0]: row[2] for row in tables.trial_rows(study).cells}
    assert outcomes == {0: "measured", 1: "measured, not steady", 2: "measured"}
    places = {row[0]: row[3] for row in tables.front_rows(study).cells}
    assert places[1] == "member, not steady" and "not steady" not in places[2]
    assert any("Not steady while measured: trial 1." in line and WHY in line for line in tables.gain_lines(study))


def test_a_level_that_no_number_was_taken_from_is_not_held_against_the_trial(study):
    low = study.record(0).outcome.measurement.rows[0].model_copy(update={"unsteady": WHY})
    kept = study.record(0).outcome.measurement.rows[1]
    outcome = Measured(measurement=study.record(0).outcome.measurement.model_copy(update={"rows": (low, kept)}))
    assert study.unsteady(study.record(0).model_copy(update={"outcome": outcome})) == ()


def test_one_trial_in_full_says_how_each_level_was_measured(study, make_record, monkeypatch):
    shown = Plain(record=True, width=220)
    monkeypatch.setattr(view, "console", shown)
    view.print_trial(study, study.record(1))
    invalid = changed(make_record(0), invalid="Only 1 of 9 requests finished as asked.")
    view.print_trial(study, invalid)
    text = shown.export_text()
    assert f"Not steady. {WHY}" in text and "33" in text
    assert "Not scored. Only 1 of 9 requests finished as asked." in text


def test_an_exported_file_says_so_beside_the_figures():
    identity = Identity(kind="vllm", version="1", python="3", device="cpu")
    told = {"study": "s", "trial": 1, "engine": identity, "model": "m", "model_path": "m", "parameters": {}}
    header = Winner(**told, configuration=Configuration(engine="vllm"), unsteady=(f"request_rate=4: {WHY}",)).header()
    assert header[-1] == f"Not steady while measured, request_rate=4: {WHY}"


def test_rows_of_older_ledgers_are_read():
    assert Row.model_validate({"level": {"concurrency": 1}, "metrics": {}}).unsteady is None


def test_an_unsteady_number_is_best_only_where_no_steady_one_is_known(small_study, make_record):
    drifting = changed(make_record(1), unsteady=WHY)
    steady = results.StudyResults(small_study, tuple(make_record(number) for number in (0, 1, 2)))
    assert steady.best("output_tokens_per_s") == 1
    study = results.StudyResults(small_study, (make_record(0), drifting, make_record(2)))
    assert study.best("output_tokens_per_s") == 0
    assert results.StudyResults(small_study, (drifting,)).best("output_tokens_per_s") == 1
    assert 1 in [one.trial for one in finalists.choose(study, 2)], "it is measured again where there is room"


def test_a_trial_without_a_needed_number_has_one_outcome_wherever_it_is_shown(small_study, make_record, monkeypatch):
    late = changed(make_record(1), invalid="The client was the bottleneck.")
    found = results.StudyResults(small_study, (make_record(0), late))
    shown = Plain(record=True, width=220)
    monkeypatch.setattr(view, "console", shown)
    view.print_trial(found, late)
    assert "Trial 1 (search): incomplete. " in (text := shown.export_text()) and "Failed during score." in text
    assert [row[0] for row in tables.losers(found).cells if row[2] == "1"] == ["incomplete"]
    assert {row[0]: row[2] for row in tables.trial_rows(found).cells} == {0: "measured", 1: "incomplete"}
    assert list(found.trials.outcome) == ["measured", "incomplete"] and found.trials.loc[1, "phase"] == "score"
    assert "trial 1: incomplete" in {hover for bar in figures.seconds(found).data for hover in bar.hovertext}
    tags = payload.tags_of(found, late, "id")
    assert (tags["autotune.kind"], tags["autotune.outcome"], tags["autotune.phase"]) == ("incomplete", "failed", "score")
    sent = payload.of_trial(found, late, tags, ())
    assert sent.failed and "bottleneck" in sent.texts["failure.json"]
    with pytest.raises(NothingMeasured, match="Trial 1 of study 'small' was not measured: incomplete"):
        found.candidate(1)
    live = Live("small", found.objective_names)
    assert live._result(late, found.judged(late)) == f"incomplete during score: {found.failure(late).evidence[0]}"
    assert live._result(late, found.judged(late)).startswith("incomplete during score: output_tokens_per_s has no value: ")
    live.close()


def test_the_list_of_studies_counts_as_measured_what_has_a_score(store, make_record):
    with Ledger(store / "small", (store / "small" / "study.yaml").read_text(), "digest") as ledger:
        ledger.record(changed(make_record(1), invalid="The client was the bottleneck."))
    assert [(row["trials"], row["measured"]) for row in view.list_rows(store)] == [(7, 5)]
