"""200 random instants. AUTOTUNE_FAULTS sets another share of them, e.g. 0.1 for a quick look; AUTOTUNE_FAULT_SEED repeats a run."""

import importlib
import os
import random

import pytest

campaigns = importlib.import_module("campaign")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_study_survives_kills_at_random_instants(tmp_path, capsys):
    share = float(os.environ.get("AUTOTUNE_FAULTS", "1"))
    seed = int(os.environ.get("AUTOTUNE_FAULT_SEED", random.randrange(10**6)))
    quota = {role: max(1, round(count * share)) for role, count in campaigns.QUOTA.items()}
    campaign = campaigns.Campaign(tmp_path, seed, quota).run()
    with capsys.disabled():
        print(f"\nfault campaign, seed {seed}\n{campaign.report()}")
    assert not campaign.failures, campaign.failures
    assert campaign.tried.total() >= sum(quota.values())
    assert campaign.survived == campaign.tried
