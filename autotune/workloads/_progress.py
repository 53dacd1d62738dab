"""Whether a running training run is lost, decided from the steps that it has made. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

from autotune.session import Step
from autotune.trial import Frozen

WINDOW = 5
"""Steps a moving mean is taken over: one step's reward is a mean over few samples and jumps."""


class StopWhen(Frozen):
    """When a run is not worth its remaining steps. Each bound but `nan` is off unless it is given."""

    nan: bool = True
    """A loss, reward, KL, entropy or gradient norm that is not finite."""
    kl_above: float | None = Field(default=None, gt=0)
    """KL to the reference, in nats, over five steps."""
    reward_collapse: float | None = Field(default=None, gt=0)
    """Fall of the five-step mean reward below the best one so far, in the reward's own unit."""
    slower_than: float | None = Field(default=None, gt=0, lt=1)
    """Share of the fastest measured rival's samples per second, in the same study."""
    halving: float | None = Field(default=None, gt=0, lt=1)
    """Successive halving: at a quarter and at half of its length a run goes on only if its five-step mean reward is among
    this share of the rivals that got as far (asynchronous: those so far; from four on)."""


def lost(steps: Sequence[Step], bounds: StopWhen, rival_sps: float | None) -> str | None:
    """Why the run is lost, or None. `steps` are those after the warm-up, but broken numbers count wherever they stand."""
    if bounds.nan and steps and steps[-1].broken:
        return f"{', '.join(steps[-1].broken)} is not finite at step {steps[-1].number}."
    return _diverged(steps, bounds) or _collapsed(steps, bounds) or _slow(steps, bounds, rival_sps)


def _last(steps: Sequence[Step], metric: str) -> list[float]:
    return [step.metrics[metric] for step in steps if metric in step.metrics]


def _diverged(steps: Sequence[Step], bounds: StopWhen) -> str | None:
    kl = _last(steps, "kl")
    if bounds.kl_above is None or len(kl) < WINDOW or fmean(kl[-WINDOW:]) <= bounds.kl_above:
        return None
    return f"kl is {fmean(kl[-WINDOW:]):.3g} nats over five steps, above the bound of {bounds.kl_above:g}."


def _collapsed(steps: Sequence[Step], bounds: StopWhen) -> str | None:
    reward = _last(steps, "reward")
    if bounds.reward_collapse is None or len(reward) < 2 * WINDOW:
        return None
    means = [fmean(reward[end - WINDOW : end]) for end in range(WINDOW, len(reward) + 1)]
    if max(means) - means[-1] <= bounds.reward_collapse:
        return None
    return f"reward fell from {max(means):.3g} to {means[-1]:.3g} (means of five steps), by more than {bounds.reward_collapse:g}."


def _slow(steps: Sequence[Step], bounds: StopWhen, rival_sps: float | None) -> str | None:
    counted = [step for step in steps if step.samples is not None]
    if bounds.slower_than is None or rival_sps is None or len(counted) < 3:
        return None
    sps = sum(step.samples or 0 for step in counted) / sum(step.metrics["step_s"] for step in counted)
    if sps >= bounds.slower_than * rival_sps:
        return None
    return (
        f"{sps:.3g} samples/s after {len(counted)} steps; a rival made {rival_sps:.3g}, and the bound is {bounds.slower_than:.0%}."
    )
