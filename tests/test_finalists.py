"""What may be said of the front after it was measured again: only of what held, and only from the runs that repeat it."""

from __future__ import annotations

import pytest

from autotune import export, results
from autotune import study as studies
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.errors import NothingMeasured
from autotune.finalists import Verdict, choose, on_winner, plan, verdicts, winner
from autotune.ledger import Ledger
from autotune.score import Objective, Selector
from autotune.trial import CLIENT_LATE, Failed, FailureKind, Measured, Measurement, Origin, Phase, Row, TrialJob

CONSTRAINT = "ttft_ms.p99"


def run(base, number, origin, tokens, ttft=250.0, invalid=None, memory=8.0):
    rows = (Row(level={"request_rate": 4}, metrics={"output_tokens_per_s": tokens, CONSTRAINT: ttft}, invalid=invalid),)
    outcome = Measured(measurement=Measurement(rows=rows, totals={"peak_memory_gib": memory}))
    return base.model_copy(update={"number": number, "origin": origin, "outcome": outcome})


@pytest.fixture
def study(small_study, make_record):
    """A search of two trials and three rounds; `finals` are the finalist's runs in them."""

    def made(*finals):
        default, fast = make_record(0), make_record(1)
        found = [run(default, 0, Origin.DEFAULT, 100.0), run(fast, 1, Origin.SEARCH, 160.0, 100.0)]
        for turn, final in enumerate(finals):
            found += [run(default, 2 + 2 * turn, Origin.BASELINE, 100.0 + turn), run(fast, 3 + 2 * turn, Origin.FINALIST, **final)]
        jobs = [TrialJob(number=one.number, configuration=one.configuration, origin=one.origin) for one in found[2:]]
        analysis = results.StudyResults(small_study, tuple(found))
        return analysis, verdicts(analysis, jobs)

    return made


def test_a_finalist_that_holds_is_better(study):
    analysis, said = study({"tokens": 150.0}, {"tokens": 151.0}, {"tokens": 149.0})
    assert 1 in analysis.membership
    assert {one.objective: one.answer for one in said} == {
        "output_tokens_per_s": "better",
        "peak_memory_gib": "not distinguishable",
    }


def test_rounding_gives_nobody_a_place_on_the_front(small_study, make_record):
    """Everybody reserves the same memory. The mean of the finalist's three runs was above it in the last digit."""
    gib = 52858 / 1024
    default, fast, slow = make_record(0), make_record(1), make_record(2)
    found = [run(default, 0, Origin.DEFAULT, 100.0, memory=gib), run(fast, 1, Origin.SEARCH, 200.0, memory=gib)]
    found += [run(slow, 2, Origin.SEARCH, 150.0, memory=gib)]
    for turn in range(3):
        found += [run(default, 3 + 2 * turn, Origin.BASELINE, 100.0 + turn, memory=gib)]
        found += [run(fast, 4 + 2 * turn, Origin.FINALIST, 200.0 + turn, memory=gib)]
    analysis = results.StudyResults(small_study, tuple(found))
    assert [analysis.feasible[index].trial for index in analysis.noisy_front.members] == [1]


def test_a_lucky_search_run_does_not_keep_a_constraint_that_the_rounds_break(study):
    """The mean over all four runs keeps the 500 ms, that of the three rounds does not."""
    analysis, said = study(*({"tokens": 150.0 + turn, "ttft": 560.0} for turn in range(3)))
    assert not analysis.candidate(1).feasible and 1 not in analysis.membership
    assert said == [], "there is no verdict on what did not hold"


def test_a_round_whose_requests_did_not_finish_is_not_left_out_of_the_count(study):
    unfinished = {"tokens": 150.0, "invalid": "Only 40 of 90 requests finished as asked."}
    analysis, said = study({"tokens": 150.0}, {"tokens": 151.0}, unfinished)
    assert not analysis.candidate(1).feasible and said == []


def test_a_round_that_only_the_client_spoilt_is_left_out(study):
    late = {"tokens": 150.0, "invalid": f"{CLIENT_LATE}: it was 30 ms late."}
    analysis, said = study({"tokens": 150.0}, {"tokens": 151.0}, late)
    assert analysis.candidate(1).feasible and said[0].answer == "better"


@pytest.mark.parametrize(
    ("why", "held"), [(f"{CLIENT_LATE}: it was 30 ms late.", True), ("Only 40 of 90 requests finished.", False)]
)
def test_a_round_in_which_nothing_was_valid_is_left_out_where_only_the_client_spoilt_it(small_study, make_record, why, held):
    """With one level such a run has failed; a default whose round it was would keep nothing, and any finalist would win."""
    default, fast = make_record(0), make_record(1)
    found = [run(default, 0, Origin.DEFAULT, 100.0), run(fast, 1, Origin.SEARCH, 105.0)]
    for turn in range(2):
        found += [run(default, 2 + 2 * turn, Origin.BASELINE, 100.0), run(fast, 3 + 2 * turn, Origin.FINALIST, 90.0)]
    spoilt = run(default, 6, Origin.BASELINE, 100.0, invalid=why)
    failed = Failed(kind=FailureKind.INCOMPLETE, phase=Phase.MEASURE, evidence=(why,), partial=spoilt.measurement)
    analysis = results.StudyResults(small_study, (*found, spoilt.model_copy(update={"outcome": failed})))
    assert analysis.candidate(0).feasible is held
    assert (winner(analysis) is analysis.default_candidate) is held


def test_a_zero_is_not_dropped_to_make_the_rest_look_better(study):
    _, said = study({"tokens": 150.0}, {"tokens": 151.0}, {"tokens": 0.0})
    (one,) = [one for one in said if one.objective == "output_tokens_per_s"]
    assert one.answer == "not distinguishable" and one.ratio is None
    assert one.difference == pytest.approx((150.0 + 151.0 + 0.0) / 3 - 101.0)


@pytest.mark.parametrize(("reached", "answer"), [(-30.0, "better"), (-98.0, "not distinguishable"), (-300.0, "worse")])
def test_values_below_zero_are_told_apart_by_their_difference(small_study, make_record, reached, answer):
    """As rewards are: a ratio of two of them says nothing. The default's lie between -101 and -99."""
    default, other = make_record(0), make_record(1)
    found = [run(default, 0, Origin.DEFAULT, -100.0), run(other, 1, Origin.SEARCH, reached + 1)]
    for turn in range(3):
        found += [run(default, 2 + 2 * turn, Origin.BASELINE, -101.0 + turn)]
        found += [run(other, 3 + 2 * turn, Origin.FINALIST, reached - 1 + turn)]
    jobs = [TrialJob(number=one.number, configuration=one.configuration, origin=one.origin) for one in found[2:]]
    said = verdicts(results.StudyResults(small_study, tuple(found)), jobs)
    (one,) = [one for one in said if one.objective == "output_tokens_per_s"]
    assert (one.answer, one.ratio, one.difference) == (answer, None, pytest.approx(reached + 100.0))
    assert one.low < one.difference < one.high
    assert f"{reached + 100:+.4g} against the default, 95 % interval" in str(one)


def searched(small_study, make_record, *values):
    """A search whose default and other trials reached these tokens/s, at 8 GiB all of them."""
    runs = [run(make_record(number), number, Origin.DEFAULT if not number else Origin.SEARCH, tokens) for number, tokens in values]
    return results.StudyResults(small_study, tuple(runs))


def test_a_default_that_leads_alone_is_challenged_by_the_next_best(small_study, make_record):
    analysis = searched(small_study, make_record, (0, 200.0), (1, 150.0), (2, 160.0))
    assert [one.trial for one in choose(analysis, 2)] == [2, 1]
    jobs = plan(analysis, small_study.finalists.model_copy(update={"count": 1, "repeats": 2}), 3, 0)
    assert [(job.number, job.origin) for job in jobs] == [
        (3, Origin.BASELINE), (4, Origin.FINALIST), (5, Origin.FINALIST), (6, Origin.BASELINE),
    ]  # fmt: skip


def test_the_default_takes_no_finalists_place(small_study, make_record):
    analysis = searched(small_study, make_record, (0, 100.0), (1, 150.0), (2, 90.0))
    assert [one.trial for one in choose(analysis, 1)] == [1]
    assert choose(searched(small_study, make_record, (0, 100.0)), 3) == []


def test_what_would_be_exported_takes_the_only_place(small_study, make_record):
    """A study on an H200 spent its one finalist on a lucky best of a noisy objective, and none on the knee."""
    values = ((Origin.DEFAULT, 100.0, 80.0), (Origin.SEARCH, 104.0, 78.0), (Origin.SEARCH, 98.0, 20.0), (Origin.SEARCH, 40.0, 16.0))
    runs = [run(make_record(at), at, origin, tokens, memory=gib) for at, (origin, tokens, gib) in enumerate(values)]
    analysis = results.StudyResults(small_study, tuple(runs))
    assert analysis.knee() == 2 != analysis.best("output_tokens_per_s")
    assert [one.trial for one in choose(analysis, 1)] == [2]
    assert [one.trial for one in choose(analysis, 2)] == [2, 1]


@pytest.fixture
def won(small_study, make_record):
    """What is exported of a search of 100 (the default), 160 and 150 tokens/s, after the rounds measured the 160 again."""

    def made(*finals, third=150.0):
        default, fast, lucky = make_record(0), make_record(1), make_record(2)
        found = [run(default, 0, Origin.DEFAULT, 100.0), run(fast, 1, Origin.SEARCH, 160.0), run(lucky, 2, Origin.SEARCH, third)]
        for turn, final in enumerate(finals):
            found += [run(default, 3 + 2 * turn, Origin.BASELINE, 100.0), run(fast, 4 + 2 * turn, Origin.FINALIST, **final)]
        analysis = results.StudyResults(small_study, tuple(found))
        assert export.choose(analysis, "winner") == winner(analysis).trial
        return analysis, winner(analysis), on_winner(analysis)

    return made


def test_a_knee_that_was_measured_again_wins(won):
    analysis, one, said = won({"tokens": 155.0}, {"tokens": 156.0})
    assert (
        one.trial == analysis.knee() == 1
        and said == "The winner is trial 1, the knee of the front, measured again beside the default."
    )
    assert export._cautions(analysis, one) == ()


def test_a_finalist_that_held_wins_over_a_run_that_nobody_repeated(won):
    analysis, one, said = won({"tokens": 140.0}, {"tokens": 141.0})
    assert (one.trial, analysis.knee()) == (1, 2)
    assert "winner is trial 1" in said and "trial 2, the knee of the front, was not" in said
    assert any("not measured again" in caution for caution in export._cautions(analysis, analysis.candidate(2)))


def test_the_default_wins_where_it_beats_every_finalist(won):
    analysis, one, said = won({"tokens": 90.0}, {"tokens": 91.0})
    assert one is analysis.default_candidate and said.startswith("The winner is the engine's default, trial 0: ")
    assert export._cautions(analysis, one) == ()


def test_a_finalist_that_trades_one_goal_for_another_wins_over_the_default_that_ties_with_it(won):
    """Of a front of two neither is nearer to the ideal, and nobody tunes for the default."""
    traded = {"tokens": 165.0, "memory": 9.0}
    analysis, one, said = won(traded, traded, third=90.0)
    assert analysis.knee() == 0, "which stands first"
    assert one.trial == 1 and said == "The winner is trial 1, the knee of what was measured again."


@pytest.mark.parametrize("finals", [(), ({"tokens": 155.0, "ttft": 900.0},) * 2])
def test_without_a_finalist_that_held_the_knee_is_taken_and_it_is_said(won, finals):
    analysis, one, said = won(*finals)
    assert one.trial == analysis.knee() == (2 if finals else 1) and "not measured again" in said
    assert any("not measured again" in caution for caution in export._cautions(analysis, one))


def test_what_comes_nearest_is_told_by_the_runs_that_it_is_judged_by(small_study, make_record):
    """Its lucky search run would make it keep the constraint by the mean of all, and nothing would be said to come near."""
    default, fast = make_record(0), make_record(1)
    found = [run(default, 0, Origin.DEFAULT, 100.0, ttft=900.0), run(fast, 1, Origin.SEARCH, 160.0, ttft=100.0)]
    found += [run(fast, 2 + turn, Origin.FINALIST, 150.0, ttft=600.0) for turn in range(2)]
    with pytest.raises(NothingMeasured, match=r"Trial 1 comes nearest: it breaks .* by 20\.0%"):
        winner(results.StudyResults(small_study, tuple(found)))


def test_where_nothing_holds_there_is_no_winner(small_study, make_record):
    broken = run(make_record(0), 0, Origin.DEFAULT, 100.0, ttft=900.0)
    assert on_winner(results.StudyResults(small_study, (broken,))) is None


def test_the_default_wins_over_a_finalist_that_cannot_be_told_from_it(won):
    analysis, one, said = won({"tokens": 95.0}, {"tokens": 110.0}, third=120.0)
    assert "not measured again" not in said
    assert one is analysis.default_candidate and "nothing measured again beside it is better" in said


def test_an_export_lacks_credentials_and_says_so(study):
    """A masked one would hide what is set where the files are used, and as a Kubernetes variable one was written in full."""
    given = {"HF_TOKEN": "hush", "PROXY": "http://me:hush@host/", "STORED_TOKEN": "***", "VLLM_X": "1"}
    engine = RecordedEngine(RecordedOptions(kind="recorded", env=given))
    withheld = export._withheld(engine)
    assert withheld == ["HF_TOKEN", "PROXY", "STORED_TOKEN"]
    analysis, _ = study({"tokens": 150.0})
    (said,) = (one for one in export._cautions(analysis, analysis.candidate(1), withheld) if "credential" in one)
    assert "HF_TOKEN, PROXY, STORED_TOKEN" in said


KEPT = """\
name: kept
engine:
  kind: vllm
  model: org/gated
  fixed: {hf_token: hush, max_model_len: 2048, hf_overrides: {auth_token: hush, eos_token: "</s>"}, tokenizer_mode: auto}
workload: {kind: http}
search_space: {include: vllm}
objectives: [{maximize: output_tokens_per_s}]
budget: {trials: 6}
"""


def handed_over(store, make_record, given, **told):
    """What is exported of trial 1 of a study, kept as a run keeps it; `told` is of its engine's identity."""
    study, _ = studies.validate(text := studies.source.parse(given, "study.yaml"))
    identity = {"kind": "vllm", "version": "0.26.0", "python": "3.12.3", "device": "NVIDIA H200", **told}
    with Ledger(store / "kept", studies.source.masked(text), study.identity) as ledger:
        ledger.note("engines", {"vllm": identity})
        for number in range(2):
            ledger.record(make_record(number))
    found = results.load("kept", store)
    return export.winner(found, found.candidate(1), store)


def test_an_export_hands_over_no_masked_parameter(tmp_path, make_record):
    """The kept study has the mask in a credential's place: a launch with it was never measured, and no hub takes it."""
    one = handed_over(tmp_path, make_record, KEPT)
    assert one.parameters == {"max_model_len": 2048, "tokenizer_mode": "auto", "max_num_seqs": 64}
    assert one.options["fixed"] == {"max_model_len": 2048, "tokenizer_mode": "auto"}
    assert any("Set hf_token, hf_overrides where it is launched" in said for said in one.cautions)


@pytest.mark.parametrize(("executor", "env"), [("local", {"VLLM_X": "2", "VLLM_USE_DEEP_GEMM": "0"}), ("ray", {"VLLM_X": "2"})])
def test_an_export_sets_what_the_shell_told_the_engine_that_was_measured(tmp_path, make_record, executor, env):
    """Without it the files launch something else; what the study says itself holds, and a node's own shell nobody knows here."""
    given = KEPT.replace("  fixed: ", "  env: {VLLM_X: '2'}\n  fixed: ") + f"executor: {{kind: {executor}}}\n"
    told = {"VLLM_USE_DEEP_GEMM": "0", "VLLM_X": "1"}
    one = handed_over(tmp_path, make_record, given, variables=told)
    assert {name: value for name, value in one.env.items() if name in told} == env


@pytest.mark.parametrize(("p", "said"), [(0.0, "p < 1e-06"), (2e-9, "p < 1e-06"), (0.031, "p = 0.031"), (1.0, "p = 1")])
def test_no_verdict_claims_a_probability_of_zero(p, said):
    one = Verdict(trial=1, objective="peak_memory_gib", ratio=0.2, low=0.2, high=0.2, p=p, answer="better")
    assert f"{said} after correction" in str(one)


@pytest.mark.parametrize(("default", "again", "wins"), [(-0.9, -0.3, 1), (0.0, 0.4, 1), (-0.9, -0.88, 0)])
def test_a_finalist_wins_by_a_reward_that_has_no_ratio_to_the_defaults(small_study, make_record, default, again, wins):
    study = small_study.model_copy(
        update={"objectives": (Objective(selector=Selector(metric="reward"), direction="maximize"),), "constraints": ()}
    )

    def reached(number, origin, reward):
        base = make_record(0 if origin in (Origin.DEFAULT, Origin.BASELINE) else 1)
        outcome = Measured(measurement=Measurement(rows=(), totals={"reward": reward}))
        return base.model_copy(update={"number": number, "origin": origin, "outcome": outcome})

    found = [reached(0, Origin.DEFAULT, default), reached(1, Origin.SEARCH, again)]
    for turn, noise in enumerate((-0.02, 0.0, 0.02)):
        found += [reached(2 + 2 * turn, Origin.BASELINE, default + noise), reached(3 + 2 * turn, Origin.FINALIST, again - noise)]
    analysis = results.StudyResults(study, tuple(found))
    assert winner(analysis).trial == wins, on_winner(analysis)
    assert analysis.gain("reward", 1).certain is bool(wins)
    assert f"{again - default:+.4g}, 95 % interval" in str(analysis.gain("reward", 1))
