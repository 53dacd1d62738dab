"""What room a cluster has, and how joining one can fail, without a cluster."""

import time

import pytest

ray = pytest.importorskip("ray")

from autotune.errors import MissingPrerequisite  # noqa: E402
from autotune.executors import _ray_cluster  # noqa: E402
from autotune.executors._ray_desk import Held  # noqa: E402
from autotune.executors._ray_room import Room  # noqa: E402
from autotune.executors._ray_tune import _fetched  # noqa: E402
from autotune.trial import Configuration, FailureKind, TrialJob  # noqa: E402

NODES = {"a": {"CPU": 4.0, "GPU": 2.0}, "b": {"CPU": 0.0, "GPU": 8.0}, "c": {"CPU": 1.0, "GPU": 8.0}, "d": {"memory": 1.0}}


@pytest.fixture
def nodes(monkeypatch):
    found = {}
    monkeypatch.setattr(_ray_cluster, "nodes", lambda: dict(found))
    return found


def test_a_trial_needs_a_cpu_beside_its_gpus():
    assert [_ray_cluster.slots(NODES, need) for need in (0, 1, 2, 8)] == [5, 3, 2, 1]
    assert _ray_cluster.largest({"b": NODES["b"]}) == 0 and _ray_cluster.largest(NODES) == 8


def test_a_trial_without_gpus_has_a_node_for_itself_unless_more_are_asked_for():
    alike = {"head": {"CPU": 2.0}, "a": {"CPU": 16.0}, "b": {"CPU": 16.0}}
    assert [_ray_cluster.cpus(alike, 0, parallel) for parallel in ("auto", 1, 2, 3, 8, 64)] == [16, 16, 16, 8, 4, 1]
    assert _ray_cluster.slots(alike, 0, 16) == 2 and _ray_cluster.slots(alike, 0, 4) == 8
    assert _ray_cluster.cpus(NODES, 2, "auto") == 1 and _ray_cluster.cpus({}, 0, "auto") == 1


def test_what_no_node_has_had_is_beyond_only_once_there_were_gpus(nodes):
    room = Room("auto")
    assert not room.beyond(4) and room.may_have(4)
    nodes["a"] = NODES["a"]
    assert room.beyond(4) and not room.beyond(2)
    nodes.clear()
    assert room.beyond(4) and not room.beyond(2)


def test_patience_begins_anew_when_a_node_has_joined_meanwhile(nodes, monkeypatch):
    room = Room("auto")
    monkeypatch.setattr("autotune.executors._ray_room._PATIENCE_S", 0.0)
    assert not room.may_have(2) and room.lacking
    nodes["a"] = NODES["a"]
    room.look_around()
    assert not room.lacking and room.notices[-1] == "A node joined the cluster."


def test_different_gpus_are_told_once(nodes):
    nodes.update({"a": {"GPU": 1.0, "accelerator_type:T4": 1.0}, "b": {"GPU": 1.0, "accelerator_type:H100": 1.0}})
    room = Room("auto")
    room.look_around()
    room.look_around()
    assert room.notices == ["The cluster has different GPUs: H100, T4. Trials on one do not compare with trials on another."]


def test_other_versions_than_the_cluster_s_are_told_whole(monkeypatch):
    def init(**options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.12.1\nThis process")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(MissingPrerequisite) as raised:
        _ray_cluster.join("auto")
    assert str(raised.value).startswith("Cannot join the Ray cluster at auto: Version mismatch")
    assert "Ray: 2.1.0" in str(raised.value) and "There is no Ray cluster" not in str(raised.value)


def test_how_many_run_at_once_is_asked_without_changing_what_is_beyond(nodes):
    """A node that came and went between two looks was seen by nobody, however often the slots were counted."""
    room = Room("auto")
    nodes["c"] = NODES["c"]
    assert room.slots(8) == 1
    nodes.clear()
    assert not room.beyond(8) and room._largest == 0
    nodes["a"] = NODES["a"]
    room.look_around()
    nodes.clear()
    assert room.beyond(8) and not room.beyond(2)


def test_gpus_that_are_kept_back_make_no_configuration_too_large(nodes):
    nodes["c"] = NODES["c"]
    room = Room("auto")
    room.hold("0-1-0", Held("c", "host", 4, ("not back",)))
    assert room.slots(8) == 0 and not room.beyond(8)


def test_a_node_is_counted_on_no_more_and_said_so_once(nodes):
    nodes.update({"a": NODES["a"], "c": NODES["c"]})
    room = Room("auto")
    for _ in range(2):
        room.shun("c", "host-c", "the engine is missing.")
    assert room.notices == ["No trial runs on host-c: the engine is missing."] == [room.shunned("c")]
    assert room.shunned("a") == "" and room.slots(8) == 0 and room.slots(2) == 1
    nodes.clear()
    outcome = room.refused(TrialJob(number=0, configuration=Configuration(engine="fake")), 8).outcome
    assert outcome.kind is FailureKind.MACHINE_FAULT and "the engine is missing" in outcome.evidence[1]


def test_what_is_waited_for_is_said_at_once_with_the_nodes_that_are_refused(nodes):
    """The last good node died after another was refused: to the cluster there still is one."""
    nodes.update({"a": NODES["a"], "c": NODES["c"]})
    room = Room("auto")
    room.shun("c", "host-c", "beside the driver's machine it has vllm 2 instead of 1.")
    del nodes["a"]
    room.notices.clear()
    assert room.may_have(1) and room.may_have(1)
    (said,) = room.notices
    assert said.startswith("No node of the cluster has 1 GPUs and a CPU for a trial now. Such trials wait 10 minutes")
    assert "No trial runs on host-c: beside the driver's machine it has vllm 2 instead of 1." in said
    assert room.may_have(0) and "has a CPU for a trial now" in room.notices[-1]


def test_a_machine_is_failing_once_it_failed_several_trials_one_after_the_other(nodes):
    nodes.update({"a": NODES["a"], "c": NODES["c"]})
    room = Room("auto")
    for number in range(4):
        room.fault("a", number, began_at=1.0)
    assert not room.failing("a", 1), "they ran side by side, so one thing may have ended them all"
    room.well("a")
    for _ in range(3):
        room.fault("a", 0, began_at=time.time())
    assert not room.failing("a", 1), "one configuration may take down whatever runs it"
    room.fault("a", 1, began_at=time.time())
    assert "failed the last 2 trials" in room.failing("a", 1)
    del nodes["c"]
    assert not room.failing("a", 1), "it could run nowhere else"
    nodes["c"] = NODES["c"]
    room.well("a")
    assert not room.failing("a", 1)


def test_files_that_are_slow_to_arrive_cost_no_measurement(monkeypatch):
    def get(part, timeout):
        if part != "record":
            raise ray.exceptions.GetTimeoutError("still on its way")
        return "measured"

    monkeypatch.setattr(ray, "get", get)
    assert _fetched("k", "record", "files") == ("record", "k", ("measured", "GetTimeoutError: still on its way"))
    assert _fetched("k", "gone", "files").kind == "lost"
