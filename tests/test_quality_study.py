"""A whole study over a real server: a setting that wins every objective and spoils the answers is not recommended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autotune import plan as plans
from autotune import preview, results, run, tables
from autotune.errors import InvalidInput
from autotune.export import choose
from autotune.live import Silent
from autotune.trial import Origin

STUDY = """\
name: answers
engine: {{kind: fake, model: {model}}}
workload: {{kind: count, requests: 4}}
search_space: {{parameters: {{kv: {{kind: categorical, values: [auto, fp8, fp4, mute], lossy: true}}}}}}
objectives: [{{maximize: output_tokens_per_s}}]
budget: {{trials: {trials}}}
first_trials: [{first}]
finalists: {{count: 3, repeats: 2}}
executor: {{kind: inline}}
tracking: {{enabled: false}}
{more}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fakes"))
    before = set(sys.modules)

    def made(*kinds, model="fake", more=""):
        path = tmp_path / "study.yaml"
        first = ", ".join(f"{{kv: {kind}}}" for kind in kinds)
        path.write_text(STUDY.format(model=model, trials=1 + len(kinds), first=first, more=more))
        return plans.confirm(plans.read(path, tmp_path / "store"))

    yield made
    # What another test file has imported is its own: its classes would be strangers to a second import.
    for name in [name for name in sys.modules if name.startswith("autotune_fakes") and name not in before]:
        del sys.modules[name]


def test_the_fastest_setting_spoils_the_answers_and_the_next_wins(plan, tmp_path):
    made = plan("fp8", "fp4")
    assert any("finalists must answer 24 fixed prompts within 0.1 nats" in one for one in preview.preview(made).warnings)
    finished = run.run(made, reporter=Silent())
    found = results.load("answers", tmp_path / "store")
    checks = {check.changes["kv"]: check for check in found.quality.checks}
    assert {kind: check.answer for kind, check in checks.items()} == {"fp4": "failed", "fp8": "passed"}
    assert (checks["fp4"].nats, checks["fp8"].nats) == (pytest.approx(0.5), pytest.approx(0.02))
    assert checks["fp8"].floor == 0.0 and checks["fp8"].agreement == 1.0
    winner = found.record(choose(found, "best:output_tokens_per_s"))
    assert winner.configuration.values == {"kv": "fp8"}
    assert {verdict.trial for verdict in finished.verdicts} == {winner.number}
    rounds = [record for record in found.records if record.origin in (Origin.BASELINE, Origin.FINALIST)]
    assert all("quality" in record.seconds for record in rounds)
    assert not any("quality" in record.seconds for record in found.records if record not in rounds)


def test_a_server_that_gives_no_log_probabilities_is_named_and_its_measurement_stands(plan, tmp_path):
    run.run(plan("mute"), reporter=Silent())
    found = results.load("answers", tmp_path / "store")
    check = found.quality.check(found.record(1).configuration)
    assert check.answer == "not checked" and "status 400" in check.why
    assert all(record.measurement for record in found.records)
    assert any("was not checked" in line for line in tables.gain_lines(found))


def test_random_weights_are_not_asked_and_it_is_said(plan, tmp_path):
    made = plan("fp4", model="synthetic:tiny")
    assert made.workload.prompts == ()
    assert any("will not be checked, because the weights are random" in one for one in preview.preview(made).warnings)
    run.run(made, reporter=Silent())
    found = results.load("answers", tmp_path / "store")
    assert not any("quality" in record.seconds for record in found.records)
    assert any("not checked: the weights are random" in line for line in tables.gain_lines(found))


def test_a_study_brings_its_own_prompts_and_limit(plan, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    made = plan("fp4", more=f"quality: {{max_drift_nats: 0.6, prompts: {own}}}")
    assert made.workload.prompts == ("one", "two")
    run.run(made, reporter=Silent())
    found = results.load("answers", tmp_path / "store")
    assert found.quality.check(found.record(1).configuration).answer == "passed"
    own.unlink()
    with pytest.raises(InvalidInput, match=r"quality\.prompts"):
        plan("fp4", more=f"quality: {{prompts: {own}}}")
