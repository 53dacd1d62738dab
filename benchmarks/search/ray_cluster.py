"""A recorded study on a simulated Ray cluster with nodes that die: node time busy, trials lost or doubled.

    python benchmarks/search/ray_cluster.py --nodes 64 --trials 1000 --kill 8

Each node is a Ray node of its own on this machine with one fake GPU, about 300 MB; `--pace` is real seconds for a
simulated one. Trials are as long as recorded ones, shrunk by the pace.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from arms import Ours
from page import keep
from surfaces import Ran, Task, tasks

from autotune import executors
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.executors.base import Site
from autotune.score import score
from autotune.trial import Failed, Measured, TrialFailed, TrialJob, TrialRecord
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--kill", type=int, default=8)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 << 20})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20, wait=False) for _ in range(given.nodes)]
    cluster.wait_for_nodes(timeout=600)
    try:
        lines = run(cluster, nodes, given)
    finally:
        ray.shutdown()
        cluster.shutdown()
    keep("A recorded study on a simulated Ray cluster", f"Ray {ray.__version__}.", lines, given.out)


def run(cluster: Cluster, nodes: list[object], given: argparse.Namespace) -> list[str]:
    task, seen = tasks()[0], list[TrialRecord]()
    engine = RecordedEngine(RecordedOptions(kind="recorded", gpus=1, pace=given.pace))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded", traffic=task.traffic))
    with tempfile.TemporaryDirectory() as store:
        site = Site(engines={"recorded": engine}, workload=workload, store=Path(store), study="ray", address=cluster.address)
        with executors.make("ray", site) as executor:
            arm, begun, killed, lost = Ours(task, 0), time.monotonic(), list[float](), 0
            waiting: list[TrialJob] = []
            while len(seen) < given.trials:
                while len(executor.running()) < executor.capacity and (job := following(arm, waiting, given.trials)):
                    executor.submit(job)
                if len(killed) < given.kill and len(seen) >= (len(killed) + 1) * given.trials // (given.kill + 1):
                    cluster.remove_node(nodes.pop(), allow_graceful=False)
                    killed.append(time.monotonic() - begun)
                record = executor.collect(0.5)
                if record is None:
                    continue
                if isinstance(record.outcome, Failed) and not record.outcome.kind.deterministic:
                    lost += 1
                    again = record.model_dump(include={"number", "configuration", "origin", "point"})
                    waiting.append(TrialJob(**again, attempt=record.attempt + 1, seed=0))
                    continue
                seen.append(record)
                arm.driver.tell(record, judged(task, record).score)
            wall = time.monotonic() - begun
    return report(given, seen, wall, killed, lost)


def following(arm: Ours, waiting: list[TrialJob], trials: int) -> TrialJob | None:
    """A trial to run again, or the next proposal while some are wanted."""
    if waiting:
        return waiting.pop()
    if arm.driver.next_number >= trials:
        return None
    proposal = arm.driver.ask()
    assert proposal is not None
    return TrialJob(**proposal.model_dump(include={"number", "configuration", "origin", "point"}), seed=0)


def judged(task: Task, record: TrialRecord) -> Ran:
    found = None
    if isinstance(record.outcome, Measured):
        try:
            found = score(record.outcome.measurement, task.objectives, task.constraints)
        except TrialFailed:
            found = None
    return Ran(record.outcome, found, sum(record.seconds.values()))


def report(given: argparse.Namespace, seen: list[TrialRecord], wall: float, killed: list[float], lost: int) -> list[str]:
    busy = sum(sum(record.seconds.values()) for record in seen) * given.pace
    offered = (given.nodes - len(killed)) * wall + sum(killed)
    numbers = [record.number for record in seen]
    return [
        "| nodes | killed | trials | lost | doubled | run again | wall s | node time busy |",
        "|---|---|---|---|---|---|---|---|",
        f"| {given.nodes} | {len(killed)} | {len(seen)} | {given.trials - len(set(numbers))} "
        f"| {len(numbers) - len(set(numbers))} | {lost} | {wall:.0f} | {busy / offered:.1%} |",
    ]


if __name__ == "__main__":
    main()
