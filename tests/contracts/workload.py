"""What every workload must do. A test module inherits `WorkloadContract` and gives it the fixtures it asks for."""

import pytest
from pydantic import ValidationError

from autotune import metrics, workloads
from autotune.trial import Measurement


class WorkloadContract:
    def test_it_is_found_by_its_kind(self, workload):
        assert workloads.get(workload.kind) is type(workload)

    def test_its_options_are_frozen_and_closed(self, workload):
        given = workload.options.model_dump()
        with pytest.raises(ValidationError):
            type(workload.options).model_validate({**given, "no_such_option": 1})
        with pytest.raises(ValidationError):
            workload.options.kind = "other"

    def test_its_metrics_are_in_the_table(self, workload):
        assert workload.metrics()
        for name in workload.metrics():
            metrics.lookup(name)

    def test_its_estimate_is_a_positive_number_of_seconds(self, workload):
        assert workload.expected_seconds() > 0

    def test_it_finds_no_fault_with_good_options(self, workload):
        assert list(workload.check()) == []

    def test_it_measures_what_it_announced(self, workload, session, context):
        told = []
        with session:
            session.wait_ready()
            found = workload.run(session, context, lambda label, share: told.append((label, share)))
        assert isinstance(found, Measurement)
        assert Measurement.model_validate_json(found.model_dump_json()) == found
        for level in workload.levels():
            assert any(row.level == level for row in found.rows)
        for names in (*(row.metrics for row in found.rows), found.totals):
            assert set(names) <= workload.metrics()
        assert told
        assert all(label and 0 <= share <= 1 for label, share in told)
        assert [share for _, share in told] == sorted(share for _, share in told)
