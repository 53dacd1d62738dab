"""The training workload over a session that plays back steps; real trainers are in tests/engines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autotune.engines.base import Context
from autotune.session import Step, TrainingSession
from autotune.trial import FailureKind, Origin, Phase, TrialFailed
from autotune.workloads._progress import StopWhen, lost
from autotune.workloads._training_table import totals
from autotune.workloads.training import Training, TrainingOptions


def step(number, reward=0.5, step_s=1.0, samples=8, fresh=8, tokens=80, broken=(), **metrics):
    values = {"step_s": step_s, **({} if reward is None else {"reward": reward}), **metrics}
    return Step(number=number, metrics=values, samples=samples, fresh_samples=fresh, tokens=tokens, broken=broken)


class Played(TrainingSession):
    """Hands out prepared steps in portions; then ends, dies, or says nothing more."""

    def __init__(self, runs, after="end", portion=3):
        self.runs, self.after, self.portion = list(runs), after, portion
        self.left = list(self.runs.pop(0))
        self.seeds = []

    def wait_ready(self):
        return {}

    def check_alive(self):
        if not self.left and self.after == "die":
            raise TrialFailed(FailureKind.OUT_OF_MEMORY, Phase.MEASURE, "CUDA out of memory", advice="less")

    def stop(self):
        return {}

    def resources(self):
        return {"peak_memory_gib": 2.0, "gpu_utilization": 0.1}

    def resources_between(self, begin, end):
        return {"gpu_utilization": 0.75} if begin > 0 else {}

    def new_steps(self):
        now, self.left = self.left[: self.portion], self.left[self.portion :]
        return tuple(now)

    def ended(self):
        return not self.left and self.after == "end"

    def restart(self, seed):
        self.seeds.append(seed)
        self.left = list(self.runs.pop(0))


@pytest.fixture
def run(tmp_path):
    def measure(session, trial=0, seed=0, origin=Origin.SEARCH, begun=0.0, **options):
        context = Context(
            study="s",
            begun=begun,
            trial=trial,
            tag="t",
            folder=tmp_path / "f",
            scratch=tmp_path / "x",
            cache=tmp_path / "c",
            seed=seed,
            origin=origin,
        )
        return Training(TrainingOptions(kind="training", **options)).run(session, context, lambda label, share: None)

    return measure


def failure(run, session, **options):
    with pytest.raises(TrialFailed) as caught:
        run(session, **options)
    return caught.value.failed


def test_warm_up_steps_are_dropped(run):
    slow = [step(1, step_s=50.0), step(2, step_s=20.0)]
    found = run(Played([slow + [step(n) for n in range(3, 9)]]), steps=4, warm_up_steps=2)
    assert [row.level for row in found.rows] == [{"step": n} for n in (3, 4, 5, 6)]
    assert found.totals["sps"] == 8.0 and found.totals["step_s"] == 1.0
    assert found.totals["train_tokens_per_s"] == 80.0 and found.totals["peak_memory_gib"] == 2.0


def test_gpus_are_as_busy_as_in_the_measured_steps(run):
    found = run(Played([[step(n) for n in range(6)]]), steps=4, warm_up_steps=2)
    assert found.totals["gpu_utilization"] == pytest.approx(0.75), "the start-up's idle time does not count"


def test_rates_are_sums_over_sums():
    found = totals([step(1, step_s=1.0, samples=10), step(2, step_s=9.0, samples=10)])
    assert found["sps"] == 2.0


def test_an_absent_metric_stays_absent(run):
    steps = [step(n, reward=None if n % 2 else 0.1 * n, tokens=None if n == 2 else 5) for n in range(1, 11)]
    found = run(Played([steps]), steps=10, warm_up_steps=0)
    assert "reward" not in found.rows[0].metrics and found.rows[1].metrics["reward"] == pytest.approx(0.2)
    assert "train_tokens_per_s" not in found.totals and "kl" not in found.totals
    assert found.totals["reward"] == pytest.approx(1.0)


def test_reward_is_the_mean_of_the_last_fifth_and_has_a_slope(run):
    found = run(Played([[step(n, reward=0.1 * n) for n in range(1, 11)]]), steps=10, warm_up_steps=0)
    assert found.totals["reward"] == pytest.approx((0.9 + 1.0) / 2)
    assert found.totals["reward_slope"] == pytest.approx(0.1)


def test_reused_samples_are_trained_but_not_fresh():
    found = totals([step(1, fresh=16, samples=8), step(2, fresh=0, samples=8)])
    assert found["sps"] == 8.0 and found["fresh_sps"] == 8.0
    assert "fresh_sps" not in totals([step(1, fresh=None)])


def test_seeds_are_runs_of_their_own(run):
    session = Played([[step(1, 0.2), step(2, 0.2)], [step(1, 0.6), step(2, 0.6)]])
    found = run(session, steps=2, warm_up_steps=0, seeds=(0, 5))
    assert session.seeds == [5]
    assert [row.level for row in found.rows] == [{"seed": s, "step": n} for s in (0, 5) for n in (1, 2)]
    assert found.totals["reward"] == pytest.approx(0.4)
    assert found.facts["seeds"]["5"]["reward"] == pytest.approx(0.6)


def test_a_repeat_of_a_trial_has_seeds_of_its_own_under_the_same_names(run):
    session = Played([[], [step(1, 0.2), step(2, 0.2)], [step(1, 0.6), step(2, 0.6)]])
    found = run(session, steps=2, warm_up_steps=0, seeds=(0, 5), trial=3, origin=Origin.FINALIST)
    assert session.seeds == [3000, 3005]
    assert [row.level["seed"] for row in found.rows] == [0, 0, 5, 5]


@pytest.mark.parametrize("offset", range(4))
def test_a_rate_does_not_depend_on_where_in_a_generation_cycle_the_window_fell(offset):
    """Every fourth step generates for 9 s; every step trains for 1 s on 8 samples."""
    every = [step(n, step_s=1.0 if n % 4 else 10.0, samples=8, fresh=0 if n % 4 else 32) for n in range(20)]
    found = totals(every[offset : offset + 10])
    assert found["sps"] == found["fresh_sps"] == pytest.approx(32 / 13)
    assert found["step_s"] == pytest.approx(13 / 4)


def test_a_phase_of_generating_steps_is_told_per_step():
    """Else a phase that runs every fourth step would seem to fill the step, and more."""
    every = [
        step(n, step_s=1.0 if n % 4 else 10.0, fresh=0 if n % 4 else 32, **({} if n % 4 else {"generate_s": 8.0}))
        for n in range(17)
    ]
    assert totals(every)["generate_s"] == pytest.approx(2.0) and totals(every)["step_s"] == pytest.approx(13 / 4)
    untold = [step(1, generate_s=4.0), step(2)]
    assert totals(untold)["generate_s"] == 4.0, "a generating step whose trainer did not tell is not a step of none"


def test_validating_now_and_then_is_told_per_step():
    found = totals([step(n, step_s=2.0 if n % 2 else 1.0, **({"testing_s": 1.0} if n % 2 else {})) for n in range(4)])
    assert found["testing_s"] == 0.5 and "save_checkpoint_s" not in found


def test_a_first_seed_other_than_the_trials_own_restarts(run):
    session = Played([[], [step(1), step(2)]])
    run(session, steps=2, warm_up_steps=0, seeds=(3,), seed=0)
    assert session.seeds == [3]


def test_equal_samples_counts_what_the_warm_up_learnt_from(run):
    found = run(Played([[step(n, samples=64) for n in range(1, 99)]]), samples=640, warm_up_steps=2)
    assert len(found.rows) == 8
    found = run(Played([[step(n, samples=1000) for n in range(1, 99)]]), samples=640, warm_up_steps=2)
    assert len(found.rows) == 1, "there is always a measured step"


def test_equal_seconds(run):
    found = run(Played([[step(n, step_s=0.5) for n in range(1, 99)]]), train_seconds=5, warm_up_steps=1)
    assert len(found.rows) == 10


def test_a_run_that_ends_short_is_incomplete(run):
    failed = failure(run, Played([[step(n) for n in range(1, 4)]]), steps=10, warm_up_steps=1)
    assert failed.kind is FailureKind.INCOMPLETE and len(failed.partial.rows) == 2
    assert "2 steps were measured" in failed.evidence[0]


def test_a_death_keeps_its_kind_and_what_was_measured(run):
    failed = failure(run, Played([[step(n) for n in range(1, 4)]], after="die"), steps=10, warm_up_steps=1)
    assert failed.kind is FailureKind.OUT_OF_MEMORY and failed.advice == "less" and len(failed.partial.rows) == 2


def test_a_stall_is_unhealthy_and_a_deadline_incomplete(run):
    silent = {"steps": 10, "warm_up_steps": 1}
    failed = failure(run, Played([[step(1)]], after="hang"), stall_s=0.3, **silent)
    assert failed.kind is FailureKind.UNHEALTHY and failed.partial is None and failed.phase is Phase.WARM_UP
    failed = failure(run, Played([[step(1), step(2)]], after="hang"), deadline_s=0.3, **silent)
    assert failed.kind is FailureKind.INCOMPLETE and "deadline" in failed.evidence[0]


def test_a_broken_number_ends_the_run_even_while_warming_up(run):
    failed = failure(run, Played([[step(1, broken=("loss",)), step(2)]]), steps=10, warm_up_steps=5)
    assert failed.kind is FailureKind.INCOMPLETE and "loss is not finite at step 1" in failed.evidence[0]
    lost = failure(run, Played([[step(1, broken=("reward",)), step(2)]]), steps=10, warm_up_steps=5)
    assert failed.advice.startswith("Nothing:") and "what the reward function returned" in lost.advice
    fine = run(Played([[step(1, broken=("loss",)), step(2)]]), steps=2, warm_up_steps=0, stop_when={"nan": False})
    assert len(fine.rows) == 2


def test_kl_past_its_bound_ends_the_run(run):
    steps = [step(n, kl=0.1 * n) for n in range(1, 99)]
    failed = failure(run, Played([steps]), steps=90, warm_up_steps=0, stop_when={"kl_above": 1.0})
    assert "kl is 1.1 nats" in failed.evidence[0] and len(failed.partial.rows) == 13


def test_a_collapsed_reward_ends_the_run(run):
    steps = [step(n, reward=0.8 if n < 20 else 0.1) for n in range(1, 99)]
    failed = failure(run, Played([steps]), steps=90, warm_up_steps=0, stop_when={"reward_collapse": 0.5})
    assert "reward fell from 0.8" in failed.evidence[0]


def test_slower_than_a_rival_of_the_same_study(run):
    bounds = {"steps": 5, "warm_up_steps": 0, "stop_when": {"slower_than": 0.5}}
    assert len(run(Played([[step(n, step_s=9.0) for n in range(1, 9)]]), **bounds).rows) == 5, "there is no rival yet"
    assert len(run(Played([[step(n, step_s=1.0) for n in range(1, 9)]]), trial=1, **bounds).rows) == 5
    failed = failure(run, Played([[step(n, step_s=9.0) for n in range(1, 9)]]), trial=2, **bounds)
    assert "a rival made 8" in failed.evidence[0] and len(failed.partial.rows) == 3
    assert failed.kind is FailureKind.ENDED_EARLY, "the run itself did nothing wrong"


def test_a_repeated_configuration_is_never_cut_for_its_rivals(run):
    bounds = {"steps": 5, "warm_up_steps": 0, "stop_when": {"slower_than": 0.5}}
    run(Played([[step(n, step_s=1.0) for n in range(1, 9)]]), **bounds)
    slow = [step(n, step_s=9.0) for n in range(1, 9)]
    assert len(run(Played([slow]), origin=Origin.DEFAULT, **bounds).rows) == 5
    for origin in (Origin.BASELINE, Origin.FINALIST):
        session = Played([[], slow])
        assert len(run(session, origin=origin, trial=7, **bounds).rows) == 5
        assert session.seeds == [7000], "the same seed would repeat the run to the digit"


def test_a_study_that_begins_anew_has_no_rivals_in_what_it_set_aside(run):
    bounds = {"steps": 5, "warm_up_steps": 0, "stop_when": {"slower_than": 0.5}}
    run(Played([[step(n, step_s=1.0) for n in range(1, 9)]]), begun=100.25, **bounds)
    slow = [step(n, step_s=9.0) for n in range(1, 9)]
    assert len(run(Played([slow]), trial=1, begun=200.5, **bounds).rows) == 5
    assert "a rival made 8" in failure(run, Played([slow]), trial=2, begun=100.25, **bounds).evidence[0]


def test_a_rivals_line_that_was_cut_short_costs_no_trial(run, tmp_path):
    bounds = {"steps": 5, "warm_up_steps": 0, "stop_when": {"slower_than": 0.5}}
    fast, slow = ([step(n, step_s=seconds) for n in range(1, 9)] for seconds in (1.0, 9.0))
    run(Played([fast]), **bounds)
    (kept,) = (tmp_path / "c" / "training").iterdir()
    kept.write_text(kept.read_text() + '{"sps": 9')
    assert len(run(Played([fast]), trial=1, **bounds).rows) == 5
    assert "a rival made 8" in failure(run, Played([slow]), trial=2, **bounds).evidence[0]


def test_successive_halving_keeps_the_better_share(run):
    bounds = {"steps": 40, "warm_up_steps": 0, "stop_when": {"halving": 0.5}}
    for reward in (0.1, 0.2, 0.3, 0.4):
        assert len(run(Played([[step(n, reward) for n in range(1, 99)]]), **bounds).rows) == 40, "there are too few rivals yet"
    assert len(run(Played([[step(n, 0.35) for n in range(1, 99)]]), **bounds).rows) == 40
    failed = failure(run, Played([[step(n, 0.15) for n in range(1, 99)]]), **bounds)
    assert len(failed.partial.rows) == 10 and "behind 4 of 5 rivals" in failed.evidence[0]
    fades = [step(n, 0.5 if n <= 10 else 0.0) for n in range(1, 99)]
    assert len(failure(run, Played([fades]), **bounds).partial.rows) == 20, "the second rung looks again"


@given(st.lists(st.floats(-1, 1), min_size=10, max_size=40))
def test_a_reward_that_stays_within_the_bound_is_never_collapsed(rewards):
    steps = [step(n, reward=reward) for n, reward in enumerate(rewards, 1)]
    assert lost(steps, StopWhen(reward_collapse=2.001), None) is None


@pytest.mark.parametrize("lengths", [{}, {"steps": 3, "samples": 5}, {"samples": 5, "train_seconds": 1}])
def test_exactly_one_length(lengths):
    with pytest.raises(ValidationError, match="exactly one"):
        TrainingOptions(kind="training", **lengths)


def test_a_repeated_seed_is_a_mistake():
    with pytest.raises(ValidationError, match="twice"):
        TrainingOptions(kind="training", steps=3, seeds=(1, 1))


def test_cautions_tell_the_two_kinds_of_knob_apart():
    short = Training(TrainingOptions(kind="training", steps=10))
    assert short.cautions({"per_device_train_batch_size": "memory"}) == ()
    found = short.cautions({"learning_rate": "algorithm", "per_device_train_batch_size": "memory"})
    assert len(found) == 3 and "learning_rate" in found[0] and "two studies" in found[2]
    honest = Training(TrainingOptions(kind="training", samples=5000, seeds=(0, 1)))
    assert honest.cautions({"learning_rate": "algorithm", "per_device_train_batch_size": "memory"}) == ()
