from hypothesis import given
from hypothesis import strategies as st

from autotune import gpu
from autotune.cores import Cores, Parts, divided, parsed, physical

WAITING = Parts(standby=True)


def flat(cores):
    return {processor for core in cores for processor in core}


def test_the_kernels_list_format_is_read():
    assert parsed("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}


def test_processors_of_one_physical_core_stay_together():
    pairs = {one: {one, (one + 4) % 8} for one in range(8)}
    assert physical(range(8), pairs) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert physical([0, 1, 5], pairs) == [(0,), (1, 5)]
    assert physical([0, 1], {}) == [(0,), (1,)]


def test_one_trial_on_sixteen_cores_has_its_parts_apart():
    share = Cores(1, WAITING, [(one,) for one in range(16)]).take()
    assert (len(share.engine), len(share.client), len(share.standby)) == (10, 4, 2)
    pairs = Cores(1, WAITING, [(one, one + 8) for one in range(8)]).take()
    assert (len(pairs.engine), len(pairs.client), len(pairs.standby)) == (10, 4, 2)
    assert Cores(1, Parts(), [(one,) for one in range(16)]).take().standby == ()
    computing = Cores(1, Parts(computing=True), [(one,) for one in range(16)]).take()
    assert (len(computing.engine), len(computing.client)) == (14, 2), "an engine that computes on cores keeps most of them"
    large = Cores(1, WAITING, [(one,) for one in range(128)]).take()
    assert (len(large.engine), len(large.client), len(large.standby)) == (118, 8, 2)


def test_a_small_machine_is_not_divided():
    alone = Cores(1, WAITING, [(0,), (1,)]).take()
    assert (alone.engine, alone.client, alone.standby) == ((), (), ())
    two = Cores(2, Parts(), [(0,), (1,)])
    assert [two.take().engine, two.take().engine] == [(0,), (1,)]


def test_a_training_run_alone_has_the_whole_machine():
    assert Cores(1, Parts(clients=False), [(one,) for one in range(16)]).take().engine == ()
    two = Cores(2, Parts(clients=False), [(one,) for one in range(16)])
    assert [len(two.take().engine), len(two.take().engine)] == [8, 8]


def test_more_trials_than_cores_share_all():
    assert Cores(3, Parts(), [(0,), (1,)]).take().engine == ()


def test_a_trial_gets_the_cores_near_its_gpus():
    cores = Cores(4, WAITING, [(one,) for one in range(64)])
    far, near = set(range(32, 64)), set(range(32))
    first, second, third = cores.take(far), cores.take(far), cores.take(near)
    assert flat(first.whole) | flat(second.whole) == far and flat(third.whole) <= near
    fourth = cores.take(far)
    assert flat(fourth.whole) <= near, "what is near is taken"
    cores.give_back(second)
    assert cores.take(far) == second, "a trial that takes another's place takes its cores"


@given(
    count=st.integers(1, 96),
    slots=st.integers(1, 9),
    threads=st.sampled_from([1, 2, 4]),
    parts=st.builds(Parts, clients=st.booleans(), standby=st.booleans(), computing=st.booleans()),
    near=st.sets(st.integers(0, 383), max_size=64),
)
def test_no_processor_is_two_trials_or_two_parts(count, slots, threads, parts, near):
    everything = [tuple(one + count * place for place in range(threads)) for one in range(count)]
    cores = Cores(slots, parts, everything)
    shares = [cores.take(near) for _ in range(slots)]
    used = [processor for share in shares for part in (share.engine, share.client, share.standby) for processor in part]
    assert len(used) == len(set(used)) and set(used) <= flat(everything)
    assert len({len(share.whole) for share in shares}) == 1, "trials that run at once have equally many"
    for share in shares:
        enough = len(flat(share.whole)) >= 8 and len(share.whole) > parts.clients + parts.standby
        assert share.engine or not share.client
        assert bool(share.client) == (enough and parts.clients) and bool(share.standby) == (enough and parts.standby)
        cores.give_back(share)
    assert flat(cores.take(near).whole) <= flat(everything)


def test_a_share_is_divided_completely():
    share = divided(tuple((one,) for one in range(11)), WAITING, alone=False)
    assert sorted((*share.engine, *share.client, *share.standby)) == list(range(11))


def test_the_processors_near_a_gpu_are_read_from_the_drivers_mask(monkeypatch):
    answers = {"nvmlDeviceGetHandleByIndex": "handle", "nvmlDeviceGetCpuAffinity": [0b101, 1]}
    monkeypatch.setattr(gpu, "ask", lambda name, *arguments: answers[name])
    assert gpu.near_processors(0) == (0, 2, 64)
    monkeypatch.setattr(gpu, "ask", lambda name, *arguments: None)
    assert gpu.near_processors(0) == ()
