from __future__ import annotations

import importlib

import optuna
import pytest
import recorded_study as support
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import InvalidInput
from autotune.feasibility.cut import Cut
from autotune.parameters import ValuesParameter
from autotune.search import First
from autotune.search.driver import AUDIT_SHARE
from autotune.search.history import WORST_AT_LEAST
from autotune.space import EngineSpace, Space
from autotune.study import Search
from autotune.trial import Configuration, Failed, FailureKind, Origin, Phase, TrialRecord, digest_of


def values_of(told):
    return [dict(proposal.configuration.values) for proposal, *_ in told]


def test_the_default_comes_first_then_what_the_user_named_then_the_search():
    named = Configuration(engine="recorded", values={"max_num_seqs": 64})
    driver = support.driver(first=[First(configuration=named, origin=Origin.WARM_START)])
    told = support.run(driver, 4)
    assert [proposal.origin for proposal, *_ in told] == [Origin.DEFAULT, Origin.WARM_START, Origin.SEARCH, Origin.SEARCH]
    assert values_of(told)[:2] == [{}, {"max_num_seqs": 64}]
    assert [proposal.number for proposal, *_ in told] == [0, 1, 2, 3]


def test_the_default_named_by_the_user_is_run_once():
    driver = support.driver(first=[First(configuration=Configuration(engine="recorded"))])
    told = support.run(driver, 2)
    assert [proposal.origin for proposal, *_ in told] == [Origin.DEFAULT, Origin.SEARCH]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_default_measured_between_them_takes_no_named_configurations_place(resumed):
    named = [Configuration(engine="recorded", values={"max_num_seqs": size}) for size in (64, 128)]
    first = [First(configuration=one) for one in named]
    driver = support.driver(first=first)
    told = support.run(driver, 2)
    if resumed:
        driver = support.replay(support.driver(first=first), told)
    assert driver.next_number == 2
    driver.begin(2, Configuration(engine="recorded"), {})
    proposal = driver.ask()
    assert (proposal.number, proposal.configuration) == (3, named[1])
    assert driver.ask().origin is Origin.SEARCH


@pytest.mark.parametrize("sampler", ["auto", "random", "nsga2", "grid"])
def test_a_resumed_search_goes_on_exactly(sampler):
    search = Search(sampler=sampler, seed=3, startup_trials=6)
    whole = support.run(support.driver(search), 24)
    resumed = support.replay(support.driver(search), whole[:15])
    assert values_of(support.run(resumed, 9)) == values_of(whole[15:])


def test_the_order_in_which_parallel_trials_finish_changes_nothing():
    search = Search(seed=5, startup_trials=4)
    told = support.run(support.driver(search), 12)
    forwards, backwards = support.driver(search), support.driver(search)
    support.replay(forwards, told)
    support.replay(backwards, list(reversed(told)))
    assert forwards.ask() == backwards.ask()


def test_running_trials_are_kept_away_from():
    driver = support.driver(Search(seed=1, startup_trials=4))
    support.run(driver, 12)
    asked = [driver.ask() for _ in range(6)]
    assert len({proposal.configuration.digest for proposal in asked}) == 6


def test_two_seeds_differ_and_one_repeats():
    first, second, again = (support.run(support.driver(Search(seed=seed)), 8) for seed in (1, 2, 1))
    assert values_of(first) == values_of(again) != values_of(second)


def test_a_crash_is_told_as_violated_and_a_machine_fault_not_at_all():
    driver = support.driver(Search(startup_trials=0), feasible=None)
    support.run(driver, 1)
    crashed, faulty = driver.ask(), driver.ask()
    for proposal, kind in ((crashed, FailureKind.CRASHED), (faulty, FailureKind.MACHINE_FAULT)):
        failed = Failed(kind=kind, phase=Phase.START)
        fields = proposal.model_dump(include={"number", "configuration", "origin", "point"})
        driver.tell(TrialRecord(**fields, outcome=failed), None)
    seen = driver._history.trials(impute=False)
    violated = [trial for trial in seen if trial.constraints["feasible"] > 0]
    assert len(seen) == 2 and len(violated) == 1
    assert violated[0].values is None
    assert violated[0].constraints["ttft_ms.p99 <= 200 @ request_rate=30"] >= WORST_AT_LEAST


def test_a_sampler_that_needs_values_gets_the_worst_seen_and_records_do_not():
    driver = support.driver(Search(startup_trials=0), feasible=None)
    measured = [found for _, _, found in support.run(driver, 3) if found]
    cut = driver.ask()
    fields = cut.model_dump(include={"number", "configuration", "origin", "point"})
    record = TrialRecord(**fields, outcome=Failed(kind=FailureKind.CRASHED, phase=Phase.START))
    driver.tell(record, None)
    imputed = next(trial for trial in driver._history.trials(impute=True) if trial.constraints["feasible"] > 0)
    assert tuple(imputed.values) == (min(s.values[0] for s in measured), max(s.values[1] for s in measured))
    assert record.measurement is None


def test_every_trial_has_every_constraint_in_one_order():
    driver = support.driver()
    support.run(driver, 30)
    orders = {tuple(trial.constraints) for trial in driver._history.trials(impute=False)}
    assert orders == {("feasible", "ttft_ms.p99 <= 200 @ request_rate=30")}


def test_forbidden_points_are_cut_with_their_reason_and_never_run():
    of = support.space()
    driver = support.driver(Search(sampler="random", seed=2))
    told = support.run(driver, 60)
    cuts = [cut for proposal, *_ in told for cut in proposal.cuts]
    assert cuts and all("vLLM refuses" in cut.reason for cut in cuts)
    assert not any(of.forbidden(proposal.configuration) for proposal, *_ in told)


def test_about_five_percent_of_likely_cuts_are_audited():
    def doubtful(configuration: Configuration) -> Cut | None:
        if configuration.values.get("gpu_memory_utilization", 1) > 0.5:
            return None
        return Cut(rule="memory", reason="small", certainty="likely", configuration=configuration)

    told = support.run(support.driver(Search(sampler="random"), feasible=doubtful), 200)
    audits = [proposal for proposal, *_ in told if proposal.origin is Origin.AUDIT]
    cuts = sum(len(proposal.cuts) for proposal, *_ in told)
    assert all(proposal.audit and proposal.audit.reason == "small" for proposal in audits)
    assert 0.3 * AUDIT_SHARE < len(audits) / (len(audits) + cuts) < 3 * AUDIT_SHARE


def small_space() -> Space:
    keep = ("enforce_eager", "async_scheduling")
    parameters = {name: parameter for name, parameter in support.space().engines["recorded"].parameters.items() if name in keep}
    return Space([EngineSpace(engine="recorded", parameters=parameters)])


@pytest.mark.parametrize("sampler", ["auto", "random", "nsga2"])
def test_nothing_is_run_twice_by_accident(sampler):
    told = support.run(support.driver(Search(sampler=sampler, startup_trials=2), of=small_space()), 5)
    resolved = [support.engine().preflight([proposal.configuration])[0].resolved for proposal, *_ in told]
    assert len({proposal.configuration.digest for proposal, *_ in told}) == 5
    assert len({str(sorted(values.items())) for values in resolved}) == 4
    last = support.replay(support.driver(Search(sampler=sampler), of=small_space()), told).ask()
    assert last is not None and last.duplicate_of is not None


def test_the_grid_ends_when_all_of_it_was_run():
    driver = support.driver(Search(sampler="grid"), of=small_space())
    told = support.run(driver, 20)
    assert len(told) == 5
    assert driver.ask() is None


def test_a_default_outside_the_space_is_not_told_and_said_so():
    parameters = {
        **support.space().engines["recorded"].parameters,
    }
    narrow = parameters["max_num_seqs"].model_copy(update={"high": 64})
    of = Space([EngineSpace(engine="recorded", parameters={**parameters, "max_num_seqs": narrow})])
    driver = support.driver(of=of)
    support.run(driver, 1)
    assert driver.notes == [
        "The recorded default configuration lies outside the search space, so the sampler does not learn from it."
    ]


@pytest.mark.parametrize("values", [[64, 128], [16, 64, 256, 1024], [4, 8, 16, 32, 64, 128, 256, 512, 1024]])
def test_values_in_place_of_a_range_keep_old_trials_where_they_were(values):
    """A point holds an exponent or an index: told as it stands, it ended the study or taught the sampler of another value."""
    told = support.run(support.driver(Search(seed=4)), 20)
    parameters = dict(support.space().engines["recorded"].parameters)
    parameters["max_num_seqs"] = ValuesParameter(kind="values", values=values)
    of = Space([EngineSpace(engine="recorded", parameters=parameters)])
    driver = support.replay(support.driver(Search(seed=4), of=of), told)
    by_number = {record.number: record.configuration.values for _, record, _ in told}
    kept = [
        entry for entry in (*driver._history._measured, *driver._history._violated) if by_number[entry.number] and not entry.attempt
    ]
    assert {by_number[entry.number]["max_num_seqs"] for entry in kept} <= set(values)
    assert all(of.decode(entry.point).values == by_number[entry.number] for entry in kept)
    assert driver.ask().number == 20


def test_a_changed_range_keeps_the_old_trials_that_still_fit():
    told = support.run(support.driver(Search(seed=4)), 20)
    parameters = dict(support.space().engines["recorded"].parameters)
    parameters["max_num_seqs"] = parameters["max_num_seqs"].model_copy(update={"high": 128})
    narrow = Space([EngineSpace(engine="recorded", parameters=parameters)])
    driver = support.replay(support.driver(Search(seed=4), of=narrow), told)
    proposal = driver.ask()
    assert proposal.number == 20
    assert proposal.configuration.values["max_num_seqs"] <= 128
    assert driver.notes


@pytest.mark.skipif(not optuna.__version__.startswith("5.0."), reason="Another Optuna may draw other points.")
@pytest.mark.parametrize(("sampler", "proposed"), [("auto", "3b837c66f593"), ("nsga2", "7eef56b91c01")])
def test_a_seed_gives_the_proposals_that_it_always_gave(sampler, proposed):
    told = support.run(support.driver(Search(sampler=sampler, seed=11)), 120)
    assert digest_of([[proposal.configuration.digest, len(proposal.cuts)] for proposal, *_ in told]) == proposed


def test_what_the_driver_keeps_for_the_sampler_does_not_grow():
    driver = support.driver(Search(sampler="random"))
    support.run(driver, 300)
    kept = [*driver._history._measured, *driver._history._violated]
    assert len(kept) <= 128 + 64
    assert len({id(one) for told in kept for one in told.distributions.values()}) == 8


def test_what_the_sampler_sees_is_bounded_and_holds_the_front():
    driver = support.driver(Search(sampler="random"))
    told = support.run(driver, 450)
    seen = driver._history.trials(impute=False)
    assert len(seen) <= 64 + 128 + 64
    best = max(found.values[0] for _, _, found in told if found and found.feasible)
    assert best in {trial.values[0] for trial in seen if trial.values}


@pytest.mark.parametrize(
    ("search", "text"),
    [
        (Search(sampler="tpee"), "Did you mean 'tpe'"),
        (Search(sampler="nowhere.at_all:Sampler"), "cannot be imported"),
        (Search(sampler="pathlib:Path"), "not a subclass of optuna.samplers.BaseSampler"),
        (Search(sampler="tpe", options={"gama": 1}), "does not take these options"),
    ],
)
def test_a_sampler_that_cannot_be_built_is_one_clear_message(search, text):
    with pytest.raises(InvalidInput, match=text):
        support.driver(search)


def test_a_third_party_sampler_by_import_path():
    told = support.run(support.driver(Search(sampler="optuna.samplers:QMCSampler", startup_trials=3)), 8)
    assert len(told) == 8


@pytest.mark.slow
def test_the_gaussian_process_sampler_runs_and_resumes():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    search = Search(sampler="gp", startup_trials=5)
    whole = support.run(support.driver(search), 8)
    resumed = support.replay(support.driver(search), whole[:7])
    assert values_of(support.run(resumed, 1)) == values_of(whole[7:])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), startup=st.integers(0, 12), trials=st.integers(1, 20))
def test_every_proposal_is_inside_the_space(seed, startup, trials):
    of = support.space()
    for proposal, *_ in support.run(support.driver(Search(seed=seed, startup_trials=startup)), trials)[1:]:
        assert of.decode(proposal.point) == proposal.configuration
        assert of.encode(proposal.configuration, {}) == proposal.point
