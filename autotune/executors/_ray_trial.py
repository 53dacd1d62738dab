"""A trial as Ray Tune runs it on a node: an actor in a placement group of its own, kept for the next trial alike."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from autotune import gpu, proc
from autotune.engines.base import Engine
from autotune.executors import _ray_node
from autotune.executors._ray_desk import Order, Reply
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

_THREADS = "OMP_NUM_THREADS"
_STAY_S = 30.0
"""How long each step of an attempt takes that only keeps its place."""


class Group(tune.PlacementGroupFactory):  # type: ignore[misc]
    """One bundle, so that its GPUs are on one node. Those of another line count as different, however much alike."""

    def __init__(self, gpus: int, cpus: int, line: int) -> None:
        super().__init__([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}], strategy="STRICT_PACK")
        self._means = gpus, cpus, line

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and self._means == other._means

    def __hash__(self) -> int:
        return hash(self._means)


class Placed(tune.Trainable):  # type: ignore[misc]
    """The first step of a trial looks where it is, and the next what is installed there if that is not known yet; then comes the
    attempt, and further ones wait until its GPUs' memory is back."""

    @classmethod
    def default_resource_request(cls, config: Order) -> Group:
        return Group(config["gpus"], config["cpus"], config["line"])

    def setup(self, config: Order, engines: Mapping[str, Engine], workload: Workload, home: _ray_node.Home) -> None:
        self._engines, self._workload = engines, workload
        _keep_own_threads()
        self._seat = _ray_node.Seat(home, gpu.indices(ray.get_gpu_ids()))
        self.reset_config(config)

    def reset_config(self, new_config: Order) -> bool:
        self._job = TrialJob.model_validate_json(new_config["job"])
        self._reply: Reply | None = None
        self._next = self._look
        return True

    def begin(self, reply: Reply) -> None:
        """Called by the driver just before each step until the attempt."""
        self._reply = reply

    def step(self) -> dict[str, Any]:
        return self._next()

    def _look(self) -> dict[str, Any]:
        self._leave_folder()
        self._next = self._begin
        return self._seen(None)

    def _seen(self, installed: Mapping[str, str] | str | None) -> dict[str, Any]:
        seen = {"gpus": tuple(self._seat.gpus), "installed": installed}
        return {"seen": seen, "node": _node(), "folder": run_folder(self.logdir), "done": False}

    def _begin(self) -> dict[str, Any]:
        assert self._reply is not None
        if self._reply.to == "tell":
            return self._seen(_ray_node.installed(self._engine))
        if self._reply.to == "run":
            self._next = self._hold
            answer = self._seat.attempt(self._engine, self._workload, self._job, self._reply.bar)
            # By reference: where it is lost with its node, the driver hears so; Tune's own loop would end.
            return {"answer": [ray.put(part) for part in answer], "done": not self._seat.watched}
        if self._reply.to == "stay":
            time.sleep(_STAY_S)
        return {"done": self._reply.to == "go"}

    def _hold(self) -> dict[str, Any]:
        held = self._seat.held()
        return {"held": held, "gpus": len(self._seat.gpus), "node": _node(), "done": not held}

    @property
    def _engine(self) -> Engine:
        return self._engines[self._job.configuration.engine]

    def _leave_folder(self) -> None:
        """Tune makes each trial a working directory; a trial has its own scratch folder."""
        with contextlib.suppress(OSError):
            os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "/"))
        shutil.rmtree(self.logdir, ignore_errors=True)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _keep_own_threads() -> None:
    """Ray limits what a worker starts to an OpenMP thread for each of the worker's CPUs; an engine has the node's, as anywhere."""
    if proc.variable(int(os.environ.get("RAY_RAYLET_PID", "0")), _THREADS) is None:
        os.environ.pop(_THREADS, None)


def run_folder(folder: str) -> str:
    """The folder that one run of Tune has on a node, from that of one of its trials there."""
    return str(Path(folder).parents[1])
