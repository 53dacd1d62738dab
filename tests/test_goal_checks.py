"""Goals about numbers that the engines report under some settings only."""

from __future__ import annotations

import pytest

from autotune import goal_checks, plan
from autotune.trial import Configuration

STUDY = """\
name: training
engine: {{kind: trl, model: "synthetic:learner-tiny", algorithm: {algorithm}, fixed: {fixed}}}
workload: {{kind: training, steps: 10}}
search_space: {{include: trl_grpo, select: [learning_rate{more}], override: {{learning_rate: [0.1, 0.2]{values}}}, forbid: [{ban}]}}
objectives: [{{maximize: sps}}]
constraints: ["kl <= 5"]
"""
MEMORY = "sps}, {minimize: peak_gpu_memory_gib}"


def asked(folder, algorithm="grpo", fixed="{}", more="", values="", first=(), beta=0.0, rule=""):
    """What is said of a study whose engine runs with a `beta` of 0 unless told otherwise."""
    (folder / "study.yaml").write_text(STUDY.format(algorithm=algorithm, fixed=fixed, more=more, values=values, ban=rule))
    made = plan.read(folder / "study.yaml", folder / "store")
    named = (*made.defaults(), *(Configuration(engine="trl", values=one) for one in first))
    resolved = {"trl": {"beta": beta}}
    goals = goal_checks.Goals(made.study, made.space, made.engines, resolved, named)
    return list(goals.mistakes(made.text)), list(goals.notes())


def test_a_goal_that_no_trial_reports_is_a_mistake_at_its_place(tmp_path):
    (mistake,), _ = asked(tmp_path)
    assert mistake.path == "constraints[0]" and mistake.line == 6
    assert "No trial of this study would report kl: TRL reports no KL while beta is 0." in str(mistake)


@pytest.mark.parametrize(("algorithm", "words"), [("dpo", "DPO"), ("rloo", "beta is 0")])
def test_it_is_told_for_the_algorithm(tmp_path, algorithm, words):
    (mistake,), _ = asked(tmp_path, algorithm=algorithm)
    assert words in str(mistake)


def test_a_default_that_cannot_be_scored_is_told_with_what_it_costs(tmp_path):
    wrong, (note,) = asked(tmp_path, more=", beta", values=", beta: [0.01, 0.1]", first=[{"beta": 0.1}, {"learning_rate": 0.01}])
    assert wrong == [] and "kl will be missing in trial 0 and first_trials[1], which" in note and "no gain is told" in note


def test_points_of_the_space_that_cannot_be_scored_are_told(tmp_path):
    wrong, notes = asked(tmp_path, more=", beta", values=", beta: [0.0, 0.1]", first=[])
    assert wrong == [] and len(notes) == 1 and "trial 0" in notes[0]


def test_points_that_a_rule_forbids_are_no_trials(tmp_path):
    free = asked(tmp_path, more=", beta", values=", beta: [0.0, 0.1]", beta=0.1)
    assert free[0] == [] and "missing in about" in free[1][0]
    assert asked(tmp_path, more=", beta", values=", beta: [0.0, 0.1]", beta=0.1, rule="beta == 0") == ([], [])
    (mistake,), _ = asked(tmp_path, more=", beta", values=", beta: [0.0, 0.1]", rule="beta > 0")
    assert "No trial of this study would report kl" in str(mistake), "what would report it may not run"


def test_a_study_that_fixes_it_has_nothing_to_be_told(tmp_path):
    assert asked(tmp_path, fixed="{beta: 0.04}") == ([], [])


@pytest.mark.parametrize(("device", "executor", "found"), [("cpu", "auto", 1), ("cpu", "ray", 0), ("NVIDIA H200", "auto", 0)])
def test_what_a_gpu_alone_has_is_no_goal_of_an_engine_on_this_machines_cpu(tmp_path, device, executor, found):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(algorithm="grpo", fixed="{beta: 0.04}", more="", values="", ban="").replace("sps}", MEMORY))
    made = plan.read(path, tmp_path / "store")
    study = made.study.model_copy(update={"executor": made.study.executor.model_copy(update={"kind": executor})})
    goals = goal_checks.Goals(study, made.space, made.engines, {"trl": {"device": device, "beta": 0.04}}, made.defaults())
    wrong = [str(one) for one in goals.mistakes(made.text)]
    assert len(wrong) == found and all("peak_gpu_memory_gib: trl runs on the CPU of this machine." in one for one in wrong)
