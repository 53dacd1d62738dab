"""A tracking server that is killed at random instants while a study runs loses no trial and shows each once in the end."""

import importlib
import random
import sys
import time
import urllib.request

import pytest

from autotune import process

rigs = importlib.import_module("rig")
KILLS = 4


class Server:
    """A real MLflow server on one port, started again after each death."""

    def __init__(self, folder):
        self.folder = folder
        self.port = process.free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.running = None

    def start(self, wait_s=90.0):
        database = f"sqlite:///{self.folder / 'server.db'}"
        argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1"]
        self.running = process.start(
            [*argv, "--port", str(self.port), "--workers", "1"],
            env={}, cwd=self.folder, log=self.folder / "server.log", tag=process.make_tag(self.folder, "mlflow", "server"),
        )  # fmt: skip
        deadline = time.monotonic() + wait_s
        while not self.answers():
            assert time.monotonic() < deadline and self.running.alive(), process.tail(self.folder / "server.log")
            time.sleep(0.1)

    def answers(self):
        try:
            return urllib.request.urlopen(f"{self.address}/health", timeout=1).status == 200
        except OSError:
            return False

    def kill(self):
        assert self.running.stop(0.0).survivors == ()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_tracking_server_loses_nothing(tmp_path, capsys):
    rng = random.Random(3)
    server = Server(tmp_path)
    undisturbed = rigs.Rig(tmp_path / "undisturbed", trials=8)
    one = rigs.Rig(tmp_path / "study", trials=8, start_s=2.5, tracking=f"{{uri: '{server.address}', experiment: faults}}")
    try:
        assert undisturbed.run() == 0
        server.start()
        driver, kills = one.start(), 0
        while driver.poll() is None and kills < KILLS:
            time.sleep(rng.uniform(0.2, 2.0))
            server.kill()
            kills += 1
            time.sleep(rng.uniform(0.0, 1.0))
            server.start()
        assert driver.wait(180) == 0, one.log()
        assert [row[1] for row in one.table().values()] == [row[1] for row in undisturbed.table().values()]
        assert one.run() == 0, one.log()
        with capsys.disabled():
            print(f"\nMLflow server: {kills} tried")
        assert kills and shown(server.address) == list(range(8))
        assert one.left(20.0) == []
    finally:
        if server.running is not None:
            server.kill()
        one.close()
        undisturbed.close()


def shown(address):
    """Numbers of the trials that the server shows, each as often as it does."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("faults")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) - len(children) == 1, "one parent run"
    return sorted(int(number) for run in children for number in [run.data.tags.get("autotune.trial", run.data.params.get("trial"))])
