"""What verl 0.9 says in its log: how its start goes on, and after what it hangs."""

from __future__ import annotations

import re

from autotune.engines._milestones import Milestones

MILESTONES: Milestones = (
    ("imports", re.compile(r"ray init kwargs: ")),
    ("ray", re.compile(r"Started a local Ray instance")),
    ("runner", re.compile(r"train and validate dataloader initialized")),
    ("trainer", re.compile(r"actor and ref model engine initialized")),
    ("rollout", re.compile(r"checkpoint engine manager initialized")),
    ("agents", re.compile(r"^\(AgentLoopWorker\w* pid=")),
)
"""The driver's imports; Ray; the process that runs the training, with its data; the trainer's process; the rollout's, with
what its engine compiles; the agent loop's. What is left is the first step."""
FATAL = (
    r"ray\.exceptions\.\w*(?:RayTaskError|ActorDiedError|ActorUnavailableError)|EngineDeadError|Error executing job with overrides"
)
"""After one of these verl's driver can hang for minutes, or for good, instead of ending."""
