"""Runs trials on the machines of a Ray cluster, each as one task that asks for the GPUs its configuration needs.

What to run next stays with the driver: Ray only finds a place. A task asks for its GPUs in one request, so that they are
on one node. It works in folders of that node and returns its record and its files as values; the driver alone writes the
study. A node or worker that dies makes its trial a machine fault, which is tried again once like any other.

Ray does not end what a dead worker's children started. Engines carry a tag that names the worker as their driver, so the
next task on that node, and every node when the executor closes, ends what belongs to a worker that is gone.

Every node needs this package and the engine installed, in the same versions as the driver's.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune import process
from autotune.engines.base import Context, Engine
from autotune.errors import MissingPrerequisite
from autotune.evaluate import evaluate
from autotune.executors.base import Executor, Site
from autotune.trial import Configuration, Failed, FailureKind, Phase, TrialJob, TrialRecord
from autotune.workloads.base import Workload

_CLOSE_S = 20.0
"""How long running trials get to stop their engines when the executor is closed."""
_CONNECT_S = 10.0
_FILE_BYTES = 4 << 20
_ALL_BYTES = 64 << 20
"""The end of a trial's file, and of all its files together, that travels back."""
_AHEAD = 16
"""One trial in so many is queued ahead, so that a node that finishes need not wait for the driver."""

Files = dict[str, bytes]


@dataclass
class _Running:
    job: TrialJob
    result: Any
    started_at: float


class RayExecutor(Executor):
    """Trials on a Ray cluster: the one at the study's `address`, RAY_ADDRESS's, or a new one on this machine."""

    kind = "ray"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._own = not ray.is_initialized()
        if self._own:
            _connect(site.address)
        self._engines = {kind: ray.put(engine) for kind, engine in site.engines.items()}
        self._workload = ray.put(site.workload)
        self._running: list[_Running] = []
        self._impossible: list[TrialRecord] = []
        self._notices: list[str] = []
        self._nodes = {node["NodeID"] for node in _alive()}

    @property
    def capacity(self) -> int:
        need = max(self.site.engines[kind].gpus_needed(Configuration(engine=kind)) for kind in self.site.engines)
        slots = sum(int(node.get("GPU", 0)) // need if need else int(node.get("CPU", 0)) for node in _resources())
        if isinstance(self.site.parallel, int):
            return min(slots, self.site.parallel)
        return slots + (slots + _AHEAD - 1) // _AHEAD

    def submit(self, job: TrialJob) -> None:
        need = self.site.gpus_needed(job)
        largest = max((int(node.get("GPU", 0)) for node in _resources()), default=0)
        if need > largest:
            reason = f"The configuration needs {need} GPUs on one node, and the largest node has {largest}."
            self._impossible.append(_without_run(job, Failed(kind=FailureKind.REJECTED, phase=Phase.CHECK, evidence=(reason,))))
            return
        task = _run.options(num_cpus=1, num_gpus=need, name=f"{self.site.study}-{job.number}")
        engine = self._engines[job.configuration.engine]
        site = (str(self.site.store.resolve()), self.site.study)
        self._running.append(_Running(job, task.remote(engine, self._workload, job.model_dump_json(), site), time.time()))

    def collect(self, timeout_s: float) -> TrialRecord | None:
        if self._impossible:
            return self._impossible.pop()
        if not self._running:
            return None
        ready, _ = ray.wait([one.result for one in self._running], num_returns=1, timeout=timeout_s, fetch_local=True)
        if not ready:
            self._count_nodes()
            return None
        one = next(one for one in self._running if one.result == ready[0])
        self._running.remove(one)
        return self._finished(one)

    def running(self) -> tuple[TrialJob, ...]:
        return tuple(one.job for one in self._running)

    def notices(self) -> list[str]:
        said, self._notices = self._notices, []
        return said

    def close(self) -> None:
        if not ray.is_initialized():
            return
        results = [one.result for one in self._running]
        for result in results:
            ray.cancel(result)
        if results:
            ray.wait(results, num_returns=len(results), timeout=_CLOSE_S)
            for result in results:
                ray.cancel(result, force=True)
        self._running.clear()
        self._reap()
        self.forget_scratch()
        if self._own:
            ray.shutdown()

    def _finished(self, one: _Running) -> TrialRecord:
        try:
            text, files = ray.get(one.result)
        except ray.exceptions.RayError as error:
            reason = (
                f"Ray lost the trial: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
            failed = Failed(kind=FailureKind.MACHINE_FAULT, phase=Phase.MEASURE, evidence=(reason,))
            self._count_nodes()
            return _without_run(one.job, failed).model_copy(update={"started_at": one.started_at})
        record = TrialRecord.model_validate_json(text)
        folder = self.site.context(one.job).folder
        _unpack(folder, files)
        return record.model_copy(update={"folder": str(folder)})

    def _count_nodes(self) -> None:
        now = {node["NodeID"] for node in _alive()}
        if gone := len(self._nodes - now):
            self._notices.append(f"{gone} of the cluster's nodes left it; their trials are run again elsewhere.")
        if come := len(now - self._nodes):
            self._notices.append(f"{come} nodes joined the cluster.")
        self._nodes = now

    def _reap(self) -> None:
        """End on every node what workers that are gone have left."""
        store = str(self.site.store.resolve())
        with contextlib.suppress(ray.exceptions.RayError):
            tasks = [
                _reap.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(store)
                for node in _alive()
            ]
            ray.wait(tasks, num_returns=len(tasks), timeout=_CLOSE_S)


def _connect(address: str | None) -> None:
    _reachable(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(address=address, namespace="autotune", log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, str(error).splitlines()[0]) from error


def _reachable(address: str | None) -> None:
    """Ray itself tries for minutes to reach an address where nothing listens."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address, f"{error}.") from error


def _no_cluster(address: str | None, why: str) -> MissingPrerequisite:
    return MissingPrerequisite(f"There is no Ray cluster at {address or 'this machine'}: {why} Start one with: ray start --head")


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in _alive()]


def _trial(engine: Engine, workload: Workload, job_text: str, site: tuple[str, str]) -> tuple[str, Files]:
    """One trial on whatever node this runs on: its record as JSON, and its files."""
    job = TrialJob.model_validate_json(job_text)
    store, study = Path(site[0]), site[1]
    process.reap(store)
    home = Path(tempfile.mkdtemp(prefix=f"autotune-{study}-{job.number:04d}-"))
    context = Context(
        study=study,
        trial=job.number,
        attempt=job.attempt,
        tag=process.make_tag(store, study, job.number, job.attempt),
        folder=home,
        scratch=process.scratch_root() / "trial",
        cache=Path(tempfile.gettempdir()) / "autotune-cache",
        gpus=tuple(int(index) for index in ray.get_gpu_ids()),
        seed=job.seed,
        origin=job.origin,
    )
    try:
        record = evaluate(job, engine, workload, context, lambda label, share: None)
        return record.model_dump_json(), _packed(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(process.scratch_root(), ignore_errors=True)


def _clean(store: str) -> None:
    process.reap(Path(store))


def _packed(folder: Path) -> Files:
    """The ends of a folder's files, the smallest first, up to a limit in all."""
    files, room = Files(), _ALL_BYTES
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size):
        content = path.read_bytes()[-_FILE_BYTES:]
        if len(content) > room:
            break
        room -= len(content)
        files[str(path.relative_to(folder))] = content
    return files


def _unpack(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _without_run(job: TrialJob, failed: Failed) -> TrialRecord:
    return TrialRecord(**job.model_dump(exclude={"seed"}), outcome=failed)


_run: Any = ray.remote(max_retries=0)(_trial)
_reap: Any = ray.remote(max_retries=0, num_cpus=0)(_clean)

executor = RayExecutor
