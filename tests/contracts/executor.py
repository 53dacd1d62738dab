"""What every executor must do. A test module inherits `ExecutorContract` and gives it a `make` fixture."""

import time

from autotune import process
from autotune.proc import store_digest
from autotune.trial import Configuration, Failed, FailureKind, Measured, TrialJob


def job(number, attempt=1, **values):
    return TrialJob(number=number, configuration=Configuration(engine="fake", values=values), point={"a": 0.1}, attempt=attempt)


def collect_all(executor, count, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    found = []
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} of {count} trials were collected"
        record = executor.collect(0.5)
        found += [record] if record else []
    return found


def leftovers(store):
    """Processes of any trial of the store."""
    from autotune import proc

    tags = {pid: proc.parse_tag(proc.tag_of(pid) or "") for pid in proc.table()}
    digest = store_digest(store)
    return [pid for pid, tag in tags.items() if tag and tag.store == digest and not tag.trial.startswith("workers")]


class ExecutorContract:
    """`make(**site options)` returns an executor of the fake engine and the counting workload, in `tmp_path`."""

    def test_every_job_comes_back_once_as_it_was_submitted(self, make, tmp_path):
        with make() as executor:
            assert executor.capacity >= 1
            jobs = [job(number, speed=100 + number) for number in range(3)]
            for one in jobs:
                executor.submit(one)
            assert {one.number for one in executor.running()} == {0, 1, 2}
            records = sorted(collect_all(executor, 3), key=lambda record: record.number)
            assert executor.running() == () and executor.collect(0.0) is None
        for one, record in zip(jobs, records, strict=True):
            assert isinstance(record.outcome, Measured), record.outcome
            assert (record.configuration, record.point, record.attempt) == (one.configuration, one.point, one.attempt)
            assert record.measurement.rows[0].metrics["output_tokens_per_s"] == (100 + one.number) * 1.5
        assert leftovers(tmp_path) == []

    def test_a_failed_trial_is_a_record(self, make, tmp_path):
        with make() as executor:
            executor.submit(job(0, mode="refuse"))
            (record,) = collect_all(executor, 1)
        assert isinstance(record.outcome, Failed) and record.outcome.kind is FailureKind.INVALID_CONFIG

    def test_a_trial_is_launched_once_it_has_its_place_and_not_before(self, make):
        launched = []
        with make(parallel=1, launched=lambda one: launched.append(one.number)) as executor:
            for number in range(2):
                executor.submit(job(number, start_s=0.5))
            (first,) = collect_all(executor, 1)
            assert (first.number, launched) == (0, [0])
            collect_all(executor, 1)
        assert launched == [0, 1]

    def test_collect_waits_no_longer_than_asked(self, make):
        with make() as executor:
            executor.submit(job(0, start_s=5))
            before = time.monotonic()
            assert executor.collect(0.2) is None
            assert time.monotonic() - before < 2

    def test_closing_ends_what_runs(self, make, tmp_path):
        executor = make()
        executor.submit(job(0, start_s=60))
        executor.submit(job(1))
        deadline = time.monotonic() + 20
        while not leftovers(tmp_path) and time.monotonic() < deadline:
            executor.collect(0.1)
        assert leftovers(tmp_path)
        executor.close()
        executor.close()
        assert leftovers(tmp_path) == []
        assert not list(process.scratch_root().glob("[0-9]*-*"))
