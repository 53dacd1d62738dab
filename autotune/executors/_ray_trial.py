"""A trial as Ray Tune runs it on a node: an actor in a placement group of its own, kept for the next trial alike."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import ray
from ray import tune

from autotune import gpu, proc
from autotune.bar import Bar
from autotune.engines.base import Engine
from autotune.executors import _ray_node
from autotune.trial import TrialJob
from autotune.workloads.base import Workload

_THREADS = "OMP_NUM_THREADS"


class Order(TypedDict):
    """What Tune calls a trial's configuration. `key` names the attempt; trials of one `line` use each other's groups."""

    key: str
    job: str
    gpus: int
    cpus: int
    line: int


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
    """The first step of a trial is the attempt; further ones wait until its GPUs' memory is back."""

    @classmethod
    def default_resource_request(cls, config: Order) -> Group:
        return Group(config["gpus"], config["cpus"], config["line"])

    def setup(self, config: Order, engines: Mapping[str, Engine], workload: Workload, home: _ray_node.Home) -> None:
        self._engines, self._workload = engines, workload
        _keep_own_threads()
        self._seat = _ray_node.Seat(home, gpu.indices(ray.get_gpu_ids()))
        self.reset_config(config)

    def reset_config(self, new_config: Order) -> bool:
        self._order = new_config
        self._wanted, self._attempted = False, False
        self._bar: Bar | None = None
        return True

    def begin(self, wanted: bool, bar: Bar | None) -> None:
        """Called by the driver just before the first step."""
        self._wanted, self._bar = wanted, bar

    def step(self) -> dict[str, Any]:
        if not self._attempted:
            self._attempted = True
            self._leave_folder()
            return self._attempt() if self._wanted else {"done": True}
        held = self._seat.held()
        node = ray.get_runtime_context().get_node_id()
        return {"held": held, "gpus": self._order["gpus"], "node": node, "done": not held}

    def _attempt(self) -> dict[str, Any]:
        job = TrialJob.model_validate_json(self._order["job"])
        answer = self._seat.attempt(self._engines[job.configuration.engine], self._workload, job, self._bar)
        # By reference: where it is lost with its node, the driver hears so; Tune's own loop would end.
        return {"answer": [ray.put(answer)], "folder": run_folder(self.logdir), "done": not self._seat.watched}

    def _leave_folder(self) -> None:
        """Tune makes each trial a working directory; a trial has its own scratch folder."""
        with contextlib.suppress(OSError):
            os.chdir(os.environ.get("TUNE_ORIG_WORKING_DIR", "/"))
        shutil.rmtree(self.logdir, ignore_errors=True)


def _keep_own_threads() -> None:
    """Ray limits what a worker starts to an OpenMP thread for each of the worker's CPUs; an engine has the node's, as anywhere."""
    if proc.variable(int(os.environ.get("RAY_RAYLET_PID", "0")), _THREADS) is None:
        os.environ.pop(_THREADS, None)


def run_folder(folder: str) -> str:
    """The folder that one run of Tune has on a node, from that of one of its trials there."""
    return str(Path(folder).parents[1])
