"""What a trial adds to verl, without verl: the parts that are plain Python."""

import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune import process
from autotune.engines.verl import CPU_FOLDER, TRIAL_FOLDER

PYTHON = Path(__file__).parents[2] / ".venvs" / "verl" / "bin" / "python"
needs_verl = pytest.mark.skipif(not PYTHON.exists(), reason="verl has an environment of its own: make engine-verl")


def test_a_module_is_patched_right_after_its_first_import(trial, tmp_path, monkeypatch):
    (tmp_path / "late_module_of_a_trial.py").write_text("VALUE = 1\nSEEN = VALUE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.meta_path.insert(0, trial.AfterImport({"late_module_of_a_trial": lambda module: setattr(module, "VALUE", 2)}))
    found = importlib.import_module("late_module_of_a_trial")
    assert (found.VALUE, found.SEEN) == (2, 1)
    importlib.reload(found)
    assert found.VALUE == 1, "it happens once"


def test_a_module_that_is_there_already_is_patched_at_once(trial, monkeypatch):
    here = SimpleNamespace(VALUE=1)
    monkeypatch.setitem(sys.modules, "early_module_of_a_trial", here)
    trial.AfterImport({"early_module_of_a_trial": lambda module: setattr(module, "VALUE", 2)})
    assert here.VALUE == 2


def test_the_replay_buffer_polls_as_often_as_asked(trial, monkeypatch):
    class ReplayBuffer:
        def __init__(self, poll_interval=2.0):
            self.poll_interval = poll_interval

    monkeypatch.setenv("AUTOTUNE_VERL_POLL_S", "0.1")
    module = SimpleNamespace(ReplayBuffer=ReplayBuffer)
    trial.poll_more_often(module)
    assert module.ReplayBuffer().poll_interval == 0.1


def test_groups_are_answers_to_one_prompt(trial):
    found = trial.spread(["a_0_0", "a_1_0", "b_0_0", "b_1_0"], [0.5, 0.5, 0.0, 1.0])
    assert found["autotune/zero_std_ratio"] == 0.5 and found["autotune/reward_std"] == pytest.approx(0.40825, abs=1e-4)
    assert trial.spread(["a_0"], [1.0]) == {}, "one answer has no spread"


def test_only_what_every_sample_was_told_is_averaged(trial):
    told = [{"reward_extra_info": {"valid": 1.0, "why": "x", "some": 1}}, {"reward_extra_info": {"valid": 0.0, "why": "y"}}]
    assert trial.beside_the_score(told) == {"autotune/reward/valid": 0.5}
    assert trial.beside_the_score([*told, {}]) == {} and trial.beside_the_score([]) == {}


def sample(worker, began, ended):
    return {"reward_extra_info": {trial_keys[0]: worker, trial_keys[1]: began, trial_keys[2]: ended, "valid": 1.0}}


trial_keys = ("autotune_reward_worker", "autotune_reward_began", "autotune_reward_ended")


def test_the_busiest_rewards_worker_counts_and_overlaps_count_once(trial):
    assert trial_keys == (trial.WORKER, trial.BEGAN, trial.ENDED)
    extras = [sample(1, 10.0, 12.0), sample(1, 11.0, 13.0), sample(2, 10.0, 11.5), sample(1, 20.0, 20.5), sample(1, 10.5, 11.0)]
    assert trial.reward_seconds(extras) == {"autotune/reward_s": 3.5}
    assert trial.beside_the_score(extras) == {"autotune/reward/valid": 1.0}, "the clock's own numbers are no metric"
    assert trial.reward_seconds([]) == trial.reward_seconds([*extras, {"reward_extra_info": {}}]) == {}


def test_a_reward_is_timed_where_it_is_computed(trial):
    class RewardLoopWorker:
        async def compute_score(self, data):
            return {"reward_score": data, "reward_extra_info": {"acc": data}}

    module = SimpleNamespace(RewardLoopWorker=RewardLoopWorker)
    trial.time_rewards(module)
    assert inspect.iscoroutinefunction(RewardLoopWorker.compute_score), "Ray tells an asynchronous actor by its methods"
    result = asyncio.run(RewardLoopWorker().compute_score(0.5))
    told = result["reward_extra_info"]
    assert result["reward_score"] == told["acc"] == 0.5 and told[trial.BEGAN] <= told[trial.ENDED]


def test_rewards_are_added_to_a_steps_metrics(trial):
    class Trainer:
        def _compute_metrics(self, batch, metrics, timing, step, epoch):
            metrics["own"] = 1

    def fetch(keys, partition_id, select_fields):
        assert keys == ["a_0", "a_1"], "padding is left out"
        extras = [SimpleNamespace(data={"reward_extra_info": {"valid": 1}}), {"reward_extra_info": {"valid": 0}}]
        return {"rm_scores": [Scores(0.0, 0.5), Scores(0.25, 0.25)], "extra_fields": extras}

    class Scores(tuple):
        def __new__(cls, *values):
            return super().__new__(cls, values)

        def sum(self):
            return sum(self)

    module = SimpleNamespace(Trainer=Trainer, tq=SimpleNamespace(kv_batch_get=fetch))
    trial.report_rewards(module)
    batch = SimpleNamespace(keys=["a_0", "a_1", "p"], tags=[{}, {}, {"is_padding": True}], partition_id="train")
    metrics = {}
    Trainer()._compute_metrics(batch, metrics, {}, 1, 0)
    assert metrics == {"own": 1, "autotune/reward_std": 0.0, "autotune/zero_std_ratio": 1.0, "autotune/reward/valid": 0.5}


HAND_OVER = """
import asyncio, importlib.util, json, os, sys, time
from pathlib import Path
import torch, verl, verl.workers.rollout.utils
import autotune_verl_trial as trial

file = Path(verl.__file__).parent / "workers/rollout/vllm_rollout/bucketed_weight_transfer.py"
spec = importlib.util.spec_from_file_location("transfer", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
trial.hand_over_apart(module)
handle = f"ipc:///tmp/rl-colocate-zmq-{os.getpid()}.sock"

def receive(number):
    got = []
    one = module.BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
    one.receive_weights(lambda weights, last: got.extend(float(weight[0]) for _, weight in weights))
    Path(str(number), "got").write_text(json.dumps(got))

def send(number):
    weights = [(name, torch.full((1000,), float(number))) for name in "ab"]
    asyncio.run(module.BucketedWeightSender(handle, 1, use_shm=True).async_send_weights(iter(weights)))

pids = []
for work, number in ((send, 1), (send, 2), (receive, 1), (receive, 2)):
    Path(str(number)).mkdir(exist_ok=True)
    pids.append(os.fork())
    if pids[-1] == 0:
        os.environ["RAY_TMPDIR"] = str(number)
        work(number)
        module.zmq.Context.instance().term()
        os._exit(0)
    time.sleep(0.5)
deadline = time.monotonic() + 30
while pids and time.monotonic() < deadline:
    pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
    time.sleep(0.05)
for pid in pids:
    os.kill(pid, 9)
"""


@needs_verl
@pytest.mark.engine
def test_trials_side_by_side_hand_over_weights_apart(tmp_path):
    """Both have the same Ray job, and so the same handle: verl's own code would mix their weights up, or wait for ever."""
    env = {
        "PYTHONPATH": f"{TRIAL_FOLDER}:{CPU_FOLDER}",
        "VERL_USE_EXTERNAL_MODULES": "autotune_verl_trial,autotune_verl_cpu",
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    ran = process.run([str(PYTHON), "-c", HAND_OVER], 240, env, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [json.loads((tmp_path / one / "got").read_text()) for one in ("1", "2")] == [[1.0, 1.0], [2.0, 2.0]]
