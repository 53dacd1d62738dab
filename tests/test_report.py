"""The report: gain first, honest about noise, safe against what a log or study may hold."""

from __future__ import annotations

import re

import pytest

from autotune import bands, effects, figures, report, results, tables
from autotune.errors import AutotuneError
from autotune.trial import Configuration, Measured, Measurement, Row


@pytest.fixture
def small(store):
    return results.load("small", store)


def test_the_page_leads_with_the_gain_and_needs_nothing_from_elsewhere(small, tmp_path):
    report.write_page(small, tmp_path / "deep" / "page.html")
    text = (tmp_path / "deep" / "page.html").read_text()
    shown = text.split("</script></head>")[1]
    assert shown.index("Gain over the engine") < shown.index("Front") < shown.index("Why the others lost")
    assert "1.46 times the default" in shown
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text), "the page loads something"


def test_nothing_a_trial_holds_becomes_markup_and_no_secret_is_shown(small_study, make_record):
    values = {"served_model_name": "<script>alert(1)</script>", "hf_token": "hf_abcdefghijklmnopqrstuvwx"}
    bad = make_record(1).model_copy(update={"configuration": Configuration(engine="vllm", values=values)})
    text = report.page(results.StudyResults(small_study, (make_record(0), bad)))
    assert "<script>alert(1)" not in text.split("</script></head>")[1]
    assert "hf_abcdefghijklmnopqrstuvwx" not in text


@pytest.mark.parametrize("numbers", [(), (6,), (0,), (0, 6), (3,)])
def test_a_study_with_little_in_it_still_has_a_page(small_study, make_record, numbers):
    text = report.page(results.StudyResults(small_study, tuple(make_record(number) for number in numbers)))
    assert "small" in text


def test_an_unwritable_place_is_answered_in_one_sentence(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AutotuneError, match="Cannot write the report"):
        report.write_page(small, tmp_path / "file" / "page.html")


def test_of_a_long_front_both_ends_are_drawn(small_study, make_record):
    """Its trials came from the middle of the front outwards, so that neither end is among every second of them."""
    made = make_record(1)
    table = made.measurement
    front = []
    for number, place in enumerate((4, 5, 3, 6, 2, 7, 1, 8, 0), start=1):
        rows = tuple(Row(level=row.level, metrics={**row.metrics, "output_tokens_per_s": 100.0 + place}) for row in table.rows)
        outcome = Measured(measurement=Measurement(rows=rows, totals={"peak_memory_gib": 4.0 + place}))
        one = Configuration(engine="vllm", values={"max_num_seqs": place + 1})
        front.append(made.model_copy(update={"number": number, "configuration": one, "outcome": outcome}))
    found = results.StudyResults(small_study, tuple(front))
    assert len(found.noisy_front.members) == 9
    drawn = report.chosen(found)
    assert len(drawn) == report.CURVES_DRAWN and drawn[0] == 9 and drawn[-1] == 8


def test_losers_say_why_with_advice(small):
    cells = {cell[0]: cell for cell in tables.losers(small).cells}
    assert cells["out-of-memory"][1:] == (1, "6", "Lower it.", "No memory left.")
    assert "ttft_ms.p99 <= 500" in cells["breaks a constraint"][3]
    assert sum(cell[1] for cell in cells.values()) + len(small.membership) == len(small.records)


def test_the_front_shows_intervals_only_where_noise_was_measured(small, small_study, make_record):
    assert "[" in tables.front_rows(small).cells[0][1]
    single = results.StudyResults(small_study, (make_record(0), make_record(1)))
    assert "[" not in tables.front_rows(single).cells[0][1]
    assert figures.front(single).data[-2].error_x.array is None


def test_a_failed_trial_has_no_value_in_the_table_of_all(small):
    failed = tables.trial_rows(small).cells[6]
    assert failed[2:5] == ("out-of-memory", None, None)


def test_the_front_figure_marks_the_default_and_holds_every_candidate(small):
    figure = figures.front(small)
    names = {trace.name: len(trace.x) for trace in figure.data if trace.name}
    assert names["engine's default"] == 1
    assert sum(names.values()) == len(small.candidates)


def test_load_curves_leave_invalid_rows_out(small_study, make_record):
    one = make_record(0)
    rows = one.measurement.rows
    broken = Measured(
        measurement=one.measurement.model_copy(update={"rows": (rows[0].model_copy(update={"invalid": "late"}), rows[1])})
    )
    found = results.StudyResults(small_study, (one.model_copy(update={"outcome": broken}),))
    figure = figures.load_curves(found, "output_tokens_per_s", [0])
    assert list(figure.data[0].x) == [4]
    assert figures.load_curves(found, "reward", [0]) is None


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([{"request_rate": 2.5}, {"request_rate": 4}], [2.5, 4]),
        ([{"request_rate": 4.0}, {"request_rate": 8.0}, {"request_rate": 16.0}, {"request_rate": 11.3}], [4, 8, 11.3, 16]),
        ([{"request_rate": 10.0}, {"concurrency": 256}], ["request_rate 10", "concurrency 256"]),
        ([{"seed": 0, "step": 1}, {"seed": 0, "step": 2}, {"seed": 1, "step": 1}], [1, 2, None, 1]),
    ],
)
def test_curves_run_over_levels_or_steps_and_never_mix_kinds(small_study, make_record, levels, expected):
    rows = tuple(Row(level=level, metrics={"output_tokens_per_s": 1.0, "ttft_ms.p99": 2.0, "reward": 3.0}) for level in levels)
    study = small_study.model_copy(update={"constraints": ()})
    outcome = Measured(measurement=Measurement(rows=rows, totals={"peak_memory_gib": 5.0}))
    found = results.StudyResults(study, (make_record(0).model_copy(update={"outcome": outcome}),))
    assert list(figures.load_curves(found, "reward", [0]).data[0].x) == expected


def test_phases_do_not_overlap(small, make_record):
    seconds = {"start": 20.0, "start.imports": 8.0, "start.compile": 7.0, "measure": 10.0}
    record = make_record(0).model_copy(update={"seconds": seconds})
    assert record.phases == {"start.imports": 8.0, "start.compile": 7.0, "start, rest": 5.0, "measure": 10.0}
    overlapping = record.model_copy(update={"seconds": {**seconds, "start.compile": 30.0}})
    assert overlapping.phases == {"start": 20.0, "measure": 10.0}


def many(small_study, make_record, value):
    """Trials over two parameters, of which only `a` matters."""
    records = []
    for number in range(24):
        values = {"a": number % 3, "b": number % 4}
        outcome = Measured(
            measurement=Measurement(
                rows=(Row(level={"request_rate": 4}, metrics={"output_tokens_per_s": value(values, number), "ttft_ms.p99": 1.0}),),
                totals={"peak_memory_gib": 5.0},
            )
        )
        configuration = Configuration(engine="vllm", values={**values, "seed": number})
        records.append(make_record(0).model_copy(update={"number": number, "configuration": configuration, "outcome": outcome}))
    return results.StudyResults(small_study, tuple(records))


def test_effects_name_the_parameter_that_matters(small_study, make_record):
    found = many(small_study, make_record, lambda values, number: 100.0 * values["a"] + 1 + number % 2)
    shares = {effect.parameter: effect.share for effect in effects.effects(found)}
    assert shares["a"] > 0.99
    assert shares["b"] == 0.0
    assert effects.effects(found)[0].parameter == "a"


def test_effects_of_a_constant_objective_or_too_few_trials_are_none(small_study, make_record, small):
    for same in (7.0, 7.1, 2.8 * 2**0.5):
        assert effects.effects(many(small_study, make_record, lambda values, number, same=same: same)) == ()
    assert effects.effects(small) == ()


def test_bands_read_the_worst_level_and_skip_what_was_not_measured(make_record):
    rows = [
        Row(level={"request_rate": rate}, metrics={"tpot_ms.mean": rate * 10.0, "prefix_cache_hit_rate": 0.5}) for rate in (2, 4)
    ]
    rows.append(Row(level={"request_rate": 9}, metrics={"tpot_ms.mean": 900.0}, invalid="overloaded client"))
    outcome = Measured(measurement=Measurement(rows=tuple(rows)))
    effective = {"gpu_memory_utilization": 0.9}
    found = bands.readings(make_record(0).model_copy(update={"outcome": outcome, "effective": effective}))
    assert {reading.band.name: (reading.value, reading.inside) for reading in found} == {
        "tpot_ms.mean": (40.0, False),
        "prefix_cache_hit_rate": (0.5, False),
        "gpu_memory_utilization": (0.9, True),
    }
    assert bands.readings(make_record(6)) == ()
