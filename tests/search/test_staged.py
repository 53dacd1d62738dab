from __future__ import annotations

import recorded_study as support

from autotune.search.staged import TRIALS, Stages
from autotune.study import Search


def test_each_trial_changes_one_group_of_the_best_so_far():
    search = Search(strategy="staged", stages=(("max_num_seqs", "max_num_batched_tokens"),))
    driver = support.driver(search)
    told = support.run(driver, 20, noise=0.0)
    first = told[0][0].point
    changed = [{name for name in first if proposal.point[name] != first[name]} for proposal, *_ in told[1 : 1 + TRIALS]]
    assert all(names <= {"max_num_seqs", "max_num_batched_tokens"} for names in changed)
    best, winner = told[0][2].values[0], first
    for proposal, _, found in told[1:]:
        stages = Stages(support.space(), search.stages).groups
        changed = {name for name in winner if proposal.point[name] != winner[name]}
        assert any(changed <= set(group) for group in stages)
        if found is not None and found.feasible and found.values[0] > best:
            best, winner = found.values[0], proposal.point


def test_parameters_that_no_group_names_follow_one_by_one():
    stages = Stages(support.space(), [("block_size",)])
    assert stages.groups[0] == ("block_size",)
    assert sorted(name for group in stages.groups for name in group) == sorted(support.space().engines["recorded"].parameters)


def test_a_staged_search_resumes_exactly_and_repeats_nothing():
    search = Search(strategy="staged", seed=2)
    whole = support.run(support.driver(search), 40)
    resumed = support.replay(support.driver(search), whole[:25])
    again = support.run(resumed, 15)
    assert [proposal.point for proposal, *_ in again] == [proposal.point for proposal, *_ in whole[25:]]
    assert len({proposal.configuration.digest for proposal, *_ in whole}) == 40
