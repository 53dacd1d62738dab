"""The training studies for a GPU, as far as a machine without one can tell: the frameworks accept what they would launch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autotune import plan, source, study
from autotune.search import grid
from autotune.trial import Configuration

ROOT = Path(__file__).parents[2]
STUDIES = {"trl_grpo": "trl", "trl_grpo_colocate": "trl", "verl_grpo": "verl"}


@pytest.fixture(params=STUDIES)
def planned(request, tmp_path):
    """The study with the engine's environment of this machine; on a GPU host each has one of its own."""
    python = ROOT / ".venvs" / STUDIES[request.param] / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make engine-{STUDIES[request.param]}")
    text = (ROOT / "studies" / "h200" / f"{request.param}.yaml").read_text()
    (own,) = [line for line in text.splitlines() if line.startswith("  python: ")]
    return plan.assemble(*study.validate(source.parse(text.replace(own, f"  python: {python}"))), tmp_path)


def drawn(planned, count):
    """Random configurations that the study's rules allow."""
    random = np.random.default_rng(0)
    (engine,) = planned.engines.values()
    found = (planned.space.decode(grid.draw(planned.space, random)) for _ in range(100 * count))
    allowed = [one for one in found if planned.space.forbidden(one, engine.options.fixed) is None]
    return allowed[:count]


@pytest.mark.engine
def test_the_framework_accepts_what_the_study_would_launch(planned):
    (engine,) = planned.engines.values()
    asked = [Configuration(engine=engine.kind), *planned.first, *drawn(planned, 40)]
    assert len(asked) > 40
    verdicts = zip(asked, engine.preflight(asked), strict=True)
    assert [(one.values, verdict.refused) for one, verdict in verdicts if verdict.refused is not None] == []


def test_every_trial_of_the_search_trains_as_many_answers_a_step(planned):
    if "trl" not in planned.engines:
        pytest.skip("verl's study fixes them by name")
    effective = {
        one.values["per_device_train_batch_size"] * one.values["gradient_accumulation_steps"]
        for one in (*planned.first, *drawn(planned, 40))
    }
    assert len(effective) == 1


def test_a_hung_driver_costs_minutes_at_most(planned):
    options = planned.workload.options
    assert options.stall_s <= 300 and options.deadline_s <= 300 and planned.engines
