"""What a node costs that dies while the answer of its trial is on the way to the driver.

    python benchmarks/search/ray_lost.py --arm tune

A trial leaves 64 MiB of files, and its node is killed some milliseconds after it has ended. Meanwhile another trial runs on
another node, which must not notice.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from ray_cluster import NOISE, SIMULATED, STORE_BYTES, executor

from autotune.engines.base import Context, Launch
from autotune.engines.recorded import RecordedEngine, RecordedOptions
from autotune.executors.base import Executor, Site
from autotune.trial import Configuration, Failed, TrialJob
from autotune.workloads.recorded import RecordedWorkload, RecordedWorkloadOptions

DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4)


class Wordy(RecordedEngine):
    """Leaves files as large as may travel back; a trial whose max_num_seqs is 1024 is a short one."""

    def launch(self, configuration: Configuration, context: Context) -> Launch:
        found = super().launch(configuration, context)
        if configuration.values["max_num_seqs"] == 1024:
            return found.model_copy(update={"files": {f"{index}.log": "x" * (4 << 20) for index in range(15)}})
        time.sleep(60)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=("groups", "tune"), default="groups")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    head = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 4 * STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SIMULATED})
    engine = Wordy(RecordedOptions(kind="recorded", gpus=1, pace=0.005, noise=NOISE))
    workload = RecordedWorkload(RecordedWorkloadOptions(kind="recorded"))
    try:
        with tempfile.TemporaryDirectory() as store:
            site = Site(engines={"recorded": engine}, workload=workload, store=Path(store), study="lost", address=cluster.address)
            node(cluster)
            with executor(given.arm, site) as places:
                places.submit(job(0, 64))
                time.sleep(10)
                for number, delay in enumerate(DELAYS_S, 1):
                    one_death(cluster, places, number, delay)
                print("the other trial:", told(places, 120.0))
    finally:
        ray.shutdown()
        cluster.shutdown()


def one_death(cluster: Cluster, places: Executor, number: int, delay: float) -> None:
    before = scratch()
    doomed = node(cluster)
    places.submit(job(number, 1024))
    while not (mine := scratch() - before):
        time.sleep(0.005)
    while any(path.exists() for path in mine):
        time.sleep(0.005)
    time.sleep(delay)
    cluster.remove_node(doomed, allow_graceful=False)
    print(f"killed {1000 * delay:.0f} ms after its trial had ended:", told(places, 30.0))


def told(places: Executor, timeout_s: float) -> str:
    """What the executor says of the next trial that ends."""
    try:
        record = places.collect(timeout_s)
    except Exception as error:
        return f"the executor failed: {error!r} from {str(error.__cause__).strip().splitlines()[-1]}"
    if record is None:
        return "nothing"
    return record.outcome.evidence[0][:200] if isinstance(record.outcome, Failed) else "measured"


def node(cluster: Cluster) -> object:
    return cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES * 2)


def job(number: int, seqs: int) -> TrialJob:
    return TrialJob(number=number, configuration=Configuration(engine="recorded", values={"max_num_seqs": seqs}), seed=0)


def scratch() -> set[Path]:
    """Folders in which trials work."""
    return set(Path(tempfile.gettempdir()).glob("autotune-*-*-*/folder"))


if __name__ == "__main__":
    main()
