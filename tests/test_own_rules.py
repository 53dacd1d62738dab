"""What a study's own rules forbid is never offered: neither the default, which stays the yardstick, nor what ran before a rule."""

from __future__ import annotations

import pytest

from autotune import export, finalists, live, plan, policy, results, run, tables
from autotune.agenda import Agenda
from autotune.errors import NothingMeasured
from autotune.ledger import Ledger
from autotune.rules import OwnRules, StudyRule
from autotune.study import Finalists
from autotune.trial import Configuration, Origin, TrialJob

STUDY = """\
name: wishes
engine: {kind: recorded}
workload: {kind: recorded, traffic: chat}
search_space: {include: recorded, forbid: ["kv_cache_dtype == 'auto'"]}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 4}
search: {sampler: random, baseline_every: 0}
finalists: {count: 1, repeats: 2}
tracking: {enabled: false}
"""
RULE = StudyRule(rule="max_num_seqs >= 128", reason="It is another team's.")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study that has run, whose default breaks its rule and is the fastest of all."""
    folder = tmp_path_factory.mktemp("wishes")
    (folder / "study.yaml").write_text(STUDY)
    made = plan.confirm(plan.read(folder / "study.yaml", folder / "store"))
    return run.run(made, cold=True, reporter=live.Silent()).results


def test_a_default_that_the_study_forbids_is_the_yardstick_and_never_wins(ran):
    default = ran.default_candidate
    assert default is not None and default.trial == 0 and default.holds and not default.feasible
    assert 0 not in ran.membership and 0 not in ran.front.index
    assert ran.gain().trial != 0 and ran.gain().ratio < 1, "it is faster than all that may win, which is told against it"
    assert finalists.winner(ran).trial != 0 and finalists.on_winner(ran).startswith("The winner is trial ")
    finals = [record for record in ran.records if record.origin is Origin.FINALIST]
    assert len(finals) == 2 and all(record.configuration.values for record in finals)
    assert sum(record.origin is Origin.BASELINE for record in ran.records) == 2, "what finalists are measured beside"
    assert ran.hypervolume().values[0] == 0.0


def test_that_it_cannot_win_is_said_with_the_reason(ran):
    rule = "kv_cache_dtype == 'auto': The study forbids it."
    assert f"The engine's default, trial 0, is measured as the yardstick and cannot win: {rule}" in tables.gain_lines(ran)
    assert {row[0]: row[2] for row in tables.front_rows(ran).cells}[0] == "default, forbidden"
    assert {row[0]: row[2] for row in tables.trial_rows(ran).cells}[0] == "measured, forbidden"
    assert ("forbidden", rule) in {(row[0], row[3]) for row in tables.losers(ran).cells}


def test_it_is_exported_only_when_named_and_then_says_so(ran):
    assert export.choose(ran, "winner") != 0 and export.choose(ran, "knee") != 0
    (said,) = export._cautions(ran, ran.candidate(0))[:1]
    assert said.startswith("The study forbids this configuration") and "kv_cache_dtype == 'auto'" in said


@pytest.fixture
def judged(small_study, make_record):
    """The small study as one would see it under a rule."""

    def made(rule, *numbers, known=None):
        found = results.StudyResults(small_study, tuple(make_record(number) for number in numbers))
        found.__dict__["own_rules"] = {"vllm": OwnRules(rules=(rule,), known=known or {})}
        return found

    return made


def test_where_only_the_default_was_measured_nothing_is_offered(judged):
    found = judged(RULE, 0, known={"max_num_seqs": 128})
    with pytest.raises(NothingMeasured, match="keeps all its constraints and its own rules"):
        found.gain()
    assert any("cannot win: max_num_seqs >= 128: It is another team's." in line for line in tables.gain_lines(found))
    assert finalists.on_winner(found) is None
    assert finalists.plan(found, Finalists(), 1, 0) == [], "there is nothing to measure again"


def test_a_rule_that_was_added_later_counts_for_what_ran_before(judged):
    rule = StudyRule(rule="max_num_seqs == 64", reason="No more.")
    assert set(judged(rule, 0, 1, 2, known={"max_num_seqs": 128}).front.index) == {0, 2}
    left_to_the_engine = StudyRule(rule="block_size == 16", reason="No more.")
    assert set(judged(left_to_the_engine, 0, 1, 2, known={"block_size": 16}).front.index) == {2}


def test_a_forbidden_default_sets_no_bar_and_ends_no_search(tmp_path, ran):
    """It would end every trial early that cannot reach what nobody may use."""
    path = tmp_path / "study.yaml"
    default = ran.record(0)
    for rule, bars in (("kv_cache_dtype == 'auto'", False), ("max_num_seqs == 7", True)):
        path.write_text(STUDY.replace("kv_cache_dtype == 'auto'", rule))
        made = plan.confirm(plan.read(path, tmp_path / str(bars)))
        with Ledger(made.folder, STUDY, made.study.identity) as ledger:
            agenda = Agenda(made, ledger, policy.driver(made, ledger, True, print), print)
            agenda.finished(default)
            job = TrialJob(number=1, configuration=ran.record(1).configuration)
            assert (agenda.bar(job) is not None) == bars
            assert (agenda.screening.growth.volumes[-1] > 0) == bars
            again = Agenda(made, ledger, policy.driver(made, ledger, True, print), print)
            assert (again.bar(job) is not None) == bars, "nor does it once the study is resumed"


def test_a_rule_that_reads_nothing_tuned_forbids_nothing(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("include: recorded,", "include: recorded, select: [max_num_seqs],"))
    made = plan.confirm(plan.read(path, tmp_path / "store"))
    assert made.own_rules == {"recorded": OwnRules()}


@pytest.mark.parametrize(("caching", "forbidden"), [(True, True), (False, False)])
def test_a_rule_of_a_parameter_that_is_not_in_use_holds_of_nothing(tmp_path, caching, forbidden):
    """The engine has a value for it all the same, which nothing reads: what runs without it may win."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: hashes\nengine: {kind: vllm, model: 'synthetic:tiny'}\nworkload: {kind: http, preset: chat}\n"
        "objectives: [{maximize: output_tokens_per_s}]\nsearch_space: {include: vllm, select: [enable_prefix_caching, "
        "prefix_caching_hash_algo, max_num_seqs], forbid: [\"prefix_caching_hash_algo == 'sha256'\"]}\n"
    )
    resolved = {"enable_prefix_caching": caching, "prefix_caching_hash_algo": "sha256"}
    space = plan.read(path, tmp_path / "store").space.knowing({"vllm": resolved})
    rules = OwnRules.model_validate(space.engines["vllm"].own_rules().model_dump(mode="json"))
    assert (rules.forbid(Configuration(engine="vllm")) is not None) == forbidden
    without = Configuration(engine="vllm", values={"enable_prefix_caching": False, "max_num_seqs": 64})
    assert space.forbidden(without, resolved) is None and rules.forbid(without) is None
    assert rules.forbid(Configuration(engine="vllm", values={"prefix_caching_hash_algo": "sha256"})) is not None
