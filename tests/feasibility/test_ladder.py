from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autotune import models
from autotune.engines._recorded.recording import load
from autotune.feasibility.dominance import Dominance
from autotune.feasibility.ladder import Known, Ladder
from autotune.feasibility.limits import broken
from autotune.space import EngineSpace, Space, SpaceFile
from autotune.trial import Configuration, Failed, FailureKind, Measured, Measurement, Origin, Phase, TrialRecord

RECORDING = load("vllm-0.26.0-llama8b")
FILE = SpaceFile.model_validate(yaml.safe_load((Path(__file__).parents[2] / "search_spaces/recorded.yaml").read_text()))
SPACE = EngineSpace(engine="recorded", parameters=FILE.parameters, forbid=FILE.forbid)
MEMORY = replace(RECORDING.memory(), corrections=())


def ladder(**known: object) -> Ladder:
    return Ladder(Space([SPACE]), {"recorded": Known(resolved=RECORDING.about.defaults, **known)})


def configuration(**values: object) -> Configuration:
    return Configuration(engine="recorded", values=values)


def record(number, outcome, **values):
    return TrialRecord(number=number, configuration=configuration(**values), origin=Origin.SEARCH, outcome=outcome)


def out_of_memory(number, **values):
    return record(number, Failed(kind=FailureKind.OUT_OF_MEMORY, phase=Phase.START), **values)


def measured(number, tokens=900_000.0, **values):
    return record(number, Measured(measurement=Measurement(rows=(), totals={"kv_cache_tokens": tokens})), **values)


def test_the_first_rung_that_cuts_gives_the_reason():
    asked = ladder(memory=MEMORY)
    assert asked.feasible(configuration(max_num_seqs=1024, max_num_batched_tokens=512)).rule == "forbidden"
    cut = asked.feasible(configuration(gpu_memory_utilization=0.1))
    assert cut is None or cut.rule == "memory"
    asked.learn(measured(0, 920_144.0))
    cut = asked.feasible(configuration(gpu_memory_utilization=0.1))
    assert (cut.rule, cut.certainty) == ("memory", "likely")
    assert asked.feasible(configuration(gpu_memory_utilization=0.13)) is None


def test_after_an_out_of_memory_what_needs_at_least_as_much_is_not_run():
    asked = ladder()
    asked.learn(out_of_memory(3, gpu_memory_utilization=0.16, max_num_seqs=256, max_num_batched_tokens=4096))
    worse = configuration(gpu_memory_utilization=0.13, max_num_seqs=512, max_num_batched_tokens=4096)
    cut = asked.feasible(worse)
    assert cut.rule == "dominance" and "Trial 3" in cut.reason
    assert asked.feasible(configuration(gpu_memory_utilization=0.2, max_num_seqs=512, max_num_batched_tokens=4096)) is None
    assert asked.feasible(configuration(**{**worse.values, "kv_cache_dtype": "fp8"})) is None


def test_a_trial_that_ran_clears_the_failures_it_contradicts():
    asked = ladder()
    failing = {"gpu_memory_utilization": 0.16, "max_num_seqs": 256, "max_num_batched_tokens": 4096}
    harder = {"gpu_memory_utilization": 0.13, "max_num_seqs": 512, "max_num_batched_tokens": 4096}
    asked.learn(out_of_memory(3, **failing))
    asked.learn(measured(4, **harder))
    assert asked.feasible(configuration(**harder)) is None
    asked.learn(out_of_memory(5, **failing))
    assert asked.feasible(configuration(**harder)) is None


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([8, 64, 512]), st.sampled_from([1024, 8192]), st.sampled_from([0.13, 0.3, 0.92])),
        max_size=12,
    )
)
def test_dominance_never_cuts_what_was_seen_to_run_nor_depends_on_order(trials):
    forward, backward = Dominance(SPACE), Dominance(SPACE)
    entries = []
    for number, (failed, seqs, rows, share) in enumerate(trials):
        values = {"max_num_seqs": seqs, "max_num_batched_tokens": rows, "gpu_memory_utilization": share}
        entries.append((number, failed, {**RECORDING.about.defaults, **values}))
    for dominance, order in ((forward, entries), (backward, entries[::-1])):
        for number, failed, values in order:
            dominance.failed(number, values) if failed else dominance.measured(values)
    for _, failed, values in entries:
        assert forward.by(values) == backward.by(values)
        if not failed:
            assert forward.by(values) is None


TOLD = st.tuples(
    st.booleans(),
    st.sampled_from([8, 64, 512]),
    st.sampled_from([1024, 4096, 8192]),
    st.sampled_from([0.13, 0.16, 0.3, 0.92]),
    st.sampled_from(["auto", "fp8"]),
)


def told(failed, seqs, rows, share, cache):
    values = {"max_num_seqs": seqs, "max_num_batched_tokens": rows, "gpu_memory_utilization": share, "kv_cache_dtype": cache}
    return failed, {**RECORDING.about.defaults, **values}


@given(st.lists(TOLD, max_size=20), st.randoms())
def test_dominance_answers_as_if_it_compared_with_every_trial(trials, random):
    dominance, seen = Dominance(SPACE), []
    entries = [(number, *told(*trial)) for number, trial in enumerate(trials)]
    random.shuffle(entries)
    for number, failed, values in entries:
        dominance.failed(number, values) if failed else dominance.measured(values)
        seen.append((number, failed, values))
        ran = [values for _, failed, values in seen if not failed]
        for _, _, asked in entries:
            believed = [
                number
                for number, failed, values in seen
                if failed and dominance._dominates(asked, values) and not any(dominance._dominates(one, values) for one in ran)
            ]
            assert dominance.by(asked) == min(believed, default=None)


def test_what_dominance_compares_with_does_not_grow_with_the_trials():
    dominance = Dominance(SPACE)
    for number in range(500):
        for share, tell in (
            (0.2 - 0.0001 * number, partial(dominance.failed, number)),
            (0.9 - 0.0001 * number, dominance.measured),
        ):
            tell({**RECORDING.about.defaults, "gpu_memory_utilization": share, "max_num_seqs": 64})
    assert len(dominance._failed) + len(dominance._measured) < 10


@pytest.mark.parametrize(
    ("values", "gpus", "text"),
    [
        ({"tensor_parallel_size": 3}, 8, "32 attention heads cannot be split over 3"),
        ({"tensor_parallel_size": 4, "data_parallel_size": 4}, 8, "needs 16 GPUs and there are 8"),
        ({"tp_size": 2}, 0, "needs 2 GPUs and there are 0"),
        ({"pipeline_parallel_size": 64}, 64, "32 layers, fewer than the 64"),
        ({"max_model_len": 1_000_000}, 1, "longer than the"),
    ],
)
def test_limits_of_model_and_machine(values, gpus, text):
    facts = models.facts("synthetic:llama-3.1-8b")
    assert any(text in reason for reason in broken(values, facts, gpus))


@pytest.mark.parametrize("values", [{}, {"tensor_parallel_size": 8}, {"max_model_len": 8192}, {"tensor_parallel_size": 16}])
def test_what_the_model_can_do_is_not_cut(values):
    assert not list(broken(values, models.facts("synthetic:llama-3.1-8b"), 16))
