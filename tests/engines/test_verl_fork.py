"""Forked workers: the server and its client with plain Python processes, and a real verl run whose workers are forked."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune import engines, process, workloads
from autotune.engines import _verl_fork
from autotune.engines._verl_hydra import A
from autotune.engines.verl import TRIAL_FOLDER, ray_folder
from autotune.evaluate import evaluate
from autotune.trial import Configuration, Measured, TrialJob

PYTHON = Path(__file__).parents[2] / ".venvs" / "verl" / "bin" / "python"
needs_verl = pytest.mark.skipif(not PYTHON.exists(), reason="verl has an environment of its own: make engine-verl")
SERVER, CLIENT = TRIAL_FOLDER / "autotune_fork_server.py", TRIAL_FOLDER / "autotune_fork_client.py"
WORKER = """
import json, os, random, resource, signal, sys, time
def number(value):
    return int(value) if isinstance(value, int) else getattr(value, "__name__", None)
if sys.argv[1] == "describe":
    print("before the JSON", end="", file=sys.stderr)
    json.dump({
        "argv": sys.argv, "path": sys.path[0], "env": dict(os.environ), "cwd": os.getcwd(), "main": __name__, "umask": os.umask(0),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE), "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "leads": os.getpgrp() == os.getpid(),
        "handlers": [number(signal.getsignal(one)) for one in signal.valid_signals()], "cpus": sorted(os.sched_getaffinity(0)),
        "stdin": sys.stdin.read(), "buffered": sys.stdout.line_buffering, "forked": "heavy" in sys.modules,
        "drawn": random.random(), "descriptors": sorted(os.listdir("/proc/self/fd"), key=int),
    }, sys.stdout)
elif sys.argv[1] == "ids":
    import threading
    from ray._raylet import NodeID
    found = [NodeID.from_random().hex()]
    one = threading.Thread(target=lambda: found.append(NodeID.from_random().hex())); one.start(); one.join()
    print(json.dumps([found, "heavy" in sys.modules]))
elif sys.argv[1] == "wait":
    print(os.getpid(), "heavy" in sys.modules, flush=True)
    time.sleep(float(sys.argv[2]))
elif sys.argv[1] == "raise":
    raise RuntimeError("on purpose")
sys.exit(int(sys.argv[-1]))
"""
DRIVER = """
import json, os, subprocess, sys
client, worker = json.loads(os.environ["CLIENT"]), os.environ["WORKER"]
def start(*arguments, env=(), **more):
    more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return subprocess.Popen([*client, worker, *arguments], env={**os.environ, **dict(env)}, **more)
def described(*arguments, **more):
    ran = start("describe", *arguments, "0", **more)
    out, err = ran.communicate("said" if more.get("stdin") == subprocess.PIPE else None)
    assert ran.returncode == 0, err
    return json.loads(out)
assert __name__ == "__main__"
"""


@pytest.fixture
def drive(tmp_path):
    """Runs a driver with a server beside it; gives what it printed as JSON, what it complained of, and its status."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "light.py").write_text("import os\nos.environ.get('LIGHT')\n")
    (tmp_path / "heavy.py").write_text("import os\nos.environ.get('HEAVY')\nos.environ['MADE_BY_HEAVY'] = '1'\n")
    (tmp_path / "bad.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    place = tmp_path / "s"
    mark = f"fork-test-{os.getpid()}-{time.monotonic_ns()}"

    def run(code, *arguments, shared=("light",), modules=("heavy",), expected=None, serve=True):
        (tmp_path / "driver.py").write_text(DRIVER + code)
        told = {"socket": str(place), "shared": shared, "modules": modules, "expected": expected or {}}
        client = [sys.executable, "-I", "-S", str(CLIENT), str(place if serve else tmp_path / "nowhere"), "60", sys.executable]
        own = {"CLIENT": json.dumps(client), "WORKER": str(tmp_path / "worker.py"), "AUTOTUNE_FORK": json.dumps(told), "MARK": mark}
        command = [sys.executable, str(SERVER), "-m", "driver", *arguments]
        env = {**os.environ, "PYTHONPATH": str(tmp_path), **own}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    yield run
    assert eventually(lambda: not marked(mark)), "nothing outlives the driver"


def marked(mark):
    found = []
    for one in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}".encode() in one.read_bytes().split(b"\0"):
                found.append(one.parent.name)
    return found


def eventually(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def told(ran):
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_driver_runs_as_if_it_had_been_started_with_m(drive):
    ran = drive("print(json.dumps([sys.argv, sys.path[0]])); sys.exit(5)", "a=1", "b c")
    argv, path = json.loads(ran.stdout)
    assert Path(argv[0]).name == "driver.py" and argv[1:] == ["a=1", "b c"] and ran.returncode == 5
    assert Path(path).samefile(Path(argv[0]).parent)


def test_a_forked_worker_is_as_a_fresh_one(drive):
    """Everything that a process takes from the one that starts it, with something unusual in each."""
    code = """
import resource, signal
def unusual():
    os.umask(0o27); os.nice(3); os.setpgid(0, 0); resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
def one():
    return described("x y", env={"RAY_NEW": "1", "RANK": "3"}, cwd="/", preexec_fn=unusual, stdin=subprocess.PIPE)
forked = one()
client[:] = [client[-1]]
print(json.dumps([forked, one()]))
"""
    forked, fresh = told(drive(code))
    assert forked.pop("forked") and not fresh.pop("forked")
    assert forked.pop("drawn") != fresh.pop("drawn")
    assert forked["env"].pop("MADE_BY_HEAVY") == "1", "as importing it in the worker would have made it"
    assert forked == fresh and forked["stdin"] == "said" and forked["argv"][1:] == ["describe", "x y", "0"]


def test_each_worker_draws_random_numbers_of_its_own(drive):
    drawn = told(drive("print(json.dumps([described()['drawn'] for _ in range(3)]))"))
    assert len(set(drawn)) == 3


IDS = """
found = [json.loads(start("ids", "0").communicate()[0]) for _ in range(2)]
print(json.dumps([found, described()["forked"]]))
"""


def test_each_worker_draws_ids_of_its_own_from_rays_native_code(drive, tmp_path):
    """By the ids that its threads draw, a worker names what it puts into the object store that all of them share."""
    (tmp_path / "actors.py").write_text("import ray\n@ray.remote\nclass One: pass\n")
    found, forked = told(drive(IDS, shared=("ray", "actors"), modules=("heavy",)))
    assert forked and all(was for _, was in found)
    assert len({one for ids, _ in found for one in ids}) == 4


@pytest.mark.parametrize("place", ["shared", "modules"])
def test_where_rays_native_code_has_drawn_nothing_is_forked(drive, tmp_path, place):
    (tmp_path / "draws.py").write_text("from ray._raylet import NodeID\nNodeID.from_random()\n")
    ran = drive(IDS, **{"shared": ("ray",), "modules": ("heavy",), place: ("ray", "heavy", "draws")})
    found, forked = told(ran)
    assert not forked and len({one for ids, _ in found for one in ids}) == 4
    assert "every worker would draw again" in ran.stderr


def test_a_client_ends_as_its_child_did(drive):
    code = """
ends = [start("wait", "0", status).wait() for status in ("0", "7")]
slow = start("wait", "60", "0"); slow.stdout.readline(); slow.terminate(); ends.append(slow.wait())
slow = start("wait", "60", "0"); pid = int(slow.stdout.readline().split()[0]); os.kill(pid, 9); ends.append(slow.wait())
print(json.dumps(ends))
"""
    ran = drive(code)
    assert told(ran) == [0, 7, -signal.SIGTERM, -signal.SIGKILL]


def test_a_killed_client_takes_its_child_along(drive):
    code = """
import time
slow = start("wait", "60", "0"); pid, forked = slow.stdout.readline().split(); slow.kill(); slow.wait()
gone = False
for _ in range(600):
    gone = not os.path.exists(f"/proc/{pid}")
    if gone: break
    time.sleep(0.05)
print(json.dumps([forked, gone, described()["forked"]]))
"""
    assert told(drive(code)) == ["True", True, True]


def test_workers_outlive_the_server_and_later_ones_start_plainly(drive):
    code = """
import signal
slow = start("wait", "1", "0"); pid, forked = slow.stdout.readline().split()
server = int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
os.kill(server, signal.SIGKILL)
print(json.dumps([forked, slow.poll(), described()["forked"], slow.wait()]))
"""
    assert told(drive(code)) == ["True", None, False, 1], "how the orphan ended nobody can know"


@pytest.mark.parametrize("server", ["alive", "dead"])
def test_a_worker_ends_with_its_raylet(drive, server):
    code = """
raylet = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
slow = start("wait", "60", "0", env={"RAY_RAYLET_PID": str(raylet.pid)}); pid, forked = slow.stdout.readline().split()
if sys.argv[1] == "dead":
    os.kill(int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1]), 9)
raylet.kill()
print(json.dumps([forked, slow.wait() != 0]))
"""
    assert told(drive(code, server)) == ["True", True]


def test_without_a_server_a_worker_starts_plainly(drive):
    found = told(drive("print(json.dumps(described('z')))", serve=False))
    assert not found["forked"] and found["argv"][1:] == ["describe", "z", "0"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"LIGHT": "1"}, "LIGHT was looked up or set while importing"),
        ({"HEAVY": "1"}, "HEAVY was looked up or set while importing"),
        ({"MADE_BY_HEAVY": "2"}, "MADE_BY_HEAVY was looked up or set while importing"),
        ({"PYTHONHASHSEED": "0"}, "PYTHONHASHSEED is not what was imported with"),
        ({"RAY_JOB_ID": "02000000"}, "second job"),
    ],
)
def test_a_worker_that_imports_would_have_gone_differently_for_is_not_forked(drive, variables, reason):
    ran = drive(f"print(json.dumps([described(env={variables!r}), described()['forked']]))")
    found, next_forked = told(ran)
    assert not found["forked"] and variables.items() <= found["env"].items() and next_forked
    assert reason in ran.stderr and ran.stderr.count("imports of its own") == 1


def test_what_workers_are_expected_to_have_is_there_while_importing(drive):
    code = "print(json.dumps([described(env={'HEAVY': 'x'})['forked'], described()['forked']]))"
    assert told(drive(code, expected={"HEAVY": "x"})) == [True, False]


@pytest.mark.parametrize("place", ["shared", "modules"])
def test_nothing_is_forked_from_a_process_with_a_thread(drive, place):
    ran = drive("print(json.dumps(described()['forked']))", **{place: ("bad",)})
    assert told(ran) is False and "a thread named" in ran.stderr


CUDA = "int cuDeviceGetCount(int *count) { *count = 1; return 0; }"
NVML = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)1; return index != 3; }
int nvmlDeviceGetHandleByUUID(char *uuid, void **handle) { *handle = (void *)1; return strcmp(uuid, "GPU-3"); }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) { *major = 9; *minor = 0; return handle != (void *)1; }
"""
TORCH = """
import ctypes, os
def is_available():
    return True
def _lazy_init():
    ctypes.CDLL({driver!r}, ctypes.RTLD_GLOBAL)
def get_device_name(device=None):
    _lazy_init()
    return "own"
def get_device_capability(device=None):
    _lazy_init()
    return 1, 1
"""


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Drivers of a GPU and a PyTorch of the test's own, on which CUDA counts as initialised once its driver is loaded."""

    def make(libraries="libcuda libnvidia-ml", visible="3"):
        for name in libraries.split():
            library = tmp_path / f"{name}.so.1"
            build = ["cc", "-shared", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", str(library)]
            subprocess.run(build, input={"libcuda": CUDA, "libnvidia-ml": NVML}[name].encode(), check=True)
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("")
        (tmp_path / "torch" / "cuda.py").write_text(TORCH.format(driver=str(tmp_path / "libcuda.so.1")))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


@pytest.mark.parametrize(
    ("libraries", "visible", "told_by"),
    [("libcuda libnvidia-ml", "3", "NVML"), ("libcuda libnvidia-ml", "GPU-3", "NVML"), ("libcuda libnvidia-ml", "5", "CUDA"),
     ("libcuda libnvidia-ml", "", "CUDA"), ("libcuda", "3", "CUDA")],
)  # fmt: skip
def test_an_import_that_asks_what_a_gpu_can_is_told_without_cuda(drive, card, tmp_path, libraries, visible, told_by):
    """As verl's kernels ask."""
    card(libraries, visible)
    (tmp_path / "kernels.py").write_text(
        "import os, torch.cuda\nfast = torch.cuda.get_device_capability()[0] >= 9\nos.environ['FAST'] = str(fast)\n"
    )
    ran = drive(
        "found = described(); print(json.dumps([found['forked'], found['env'].get('FAST')]))",
        shared=("torch.cuda",),
        modules=("heavy", "kernels"),
    )
    assert told(ran) == [True, "True" if told_by == "NVML" else None]
    assert ("imports kernels itself" in ran.stderr) is (told_by == "CUDA")


def test_an_import_that_initialises_cuda_is_left_to_the_workers(drive, card, tmp_path):
    """As vLLM's flash-linear-attention asks; a module that goes on without what it cannot import must not do so here."""
    card()
    (tmp_path / "below.py").write_text("import os\nos.environ['BELOW'] = '1'\n")
    (tmp_path / "asks.py").write_text("import below, torch.cuda\nname = torch.cuda.get_device_name(0)\n")
    (tmp_path / "tries.py").write_text(
        "try:\n    import asks\nexcept Exception:\n    asks = None\nimport os\nos.environ['TRIED'] = '1'\n"
    )
    ran = drive("found = described(); print(json.dumps([found['forked'], 'BELOW' in found['env'], 'TRIED' in found['env']]))",
                shared=("torch.cuda",), modules=("heavy", "tries"))  # fmt: skip
    assert told(ran) == [True, True, False]
    assert "Each worker imports tries itself, which initialises CUDA." in ran.stderr


def test_what_stayed_of_a_package_that_was_given_up_is_the_packages_again(drive, card, tmp_path):
    """It is not imported twice, as what it registers may not be."""
    card()
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(
        "import pack.sound\nloud = pack.sound.times\nimport torch.cuda\nname = torch.cuda.get_device_name(0)\n"
    )
    (tmp_path / "pack" / "sound.py").write_text("import os\ntimes = os.environ['TIMES'] = os.environ.get('TIMES', '') + 'I'\n")
    code = "import torch.cuda; torch.cuda.get_device_name = str; import pack; print(json.dumps([pack.loud, pack.sound.times]))"
    ran = drive(code, shared=("torch.cuda", "pack"))
    assert "Each worker imports pack itself" in ran.stderr and told(ran) == ["I", "I"]


def test_where_cuda_was_initialised_all_the_same_nothing_is_forked(drive, card, tmp_path):
    card()
    (tmp_path / "native.py").write_text(f"import ctypes\nctypes.CDLL({str(tmp_path / 'libcuda.so.1')!r}, ctypes.RTLD_GLOBAL)\n")
    ran = drive("print(json.dumps(described()['forked']))", modules=("heavy", "native"))
    assert told(ran) is False and "CUDA was initialised while native was imported" in ran.stderr


def test_clients_that_go_away_before_they_are_served_disturb_nobody(drive):
    code = """
import socket, struct
for said in (b"", b"xx", struct.pack("!I", 50) + b"{}"):
    gone = socket.socket(socket.AF_UNIX); gone.connect(client[4]); gone.sendall(said); gone.close()
print(json.dumps(described()["forked"]))
"""
    assert told(drive(code)) is True


def test_a_socket_that_an_earlier_run_left_is_replaced(drive, tmp_path):
    (tmp_path / "s").write_text("")
    assert told(drive("print(json.dumps(described()['forked']))")) is True


def test_the_server_dies_with_a_driver_that_is_killed(drive):
    ran = drive("assert described()['forked']; os.kill(os.getpid(), 9)")
    assert ran.returncode == -signal.SIGKILL, "and the fixture sees that nothing is left"


def test_after_a_forked_worker_that_crashed_at_once_none_is_forked(drive):
    ran = drive("crashed = start('raise').wait(); print(json.dumps([crashed, described()['forked']]))")
    assert told(ran) == [1, False] and "ended with status 1 soon" in ran.stderr


def test_a_launch_says_how_workers_start(context):
    plain, forked = (make(fork=fork).launch(Configuration(engine="verl", values={}), context) for fork in (False, True))
    assert plain.argv[1:3] == ("-m", "verl.trainer.main_ppo") and "AUTOTUNE_FORK" not in plain.env
    assert forked.argv[1:4] == (str(SERVER), "-m", "verl.trainer.main_ppo")
    (client,) = (part for part in forked.argv if part.lstrip("+").startswith(_verl_fork.PY_EXECUTABLE))
    place = json.loads(forked.env["AUTOTUNE_FORK"])["socket"]
    assert shlex.split(client.split("=", 1)[1].strip("'"))[4] == place and len(place) < 107


def test_auto_forks_single_processes_and_leaves_a_users_interpreter_alone(context):
    def forks(**options):
        return "AUTOTUNE_FORK" in make(**options).launch(Configuration(engine="verl", values={}), context).env

    assert forks() and not forks(processes=2) and forks(processes=2, fork=True)
    assert not forks(cpu=False) and forks(cpu=False, fork=True), "on a GPU nobody has proven it"
    assert not forks(fork=True, fixed={_verl_fork.PY_EXECUTABLE: "/mine/python"})


def make(**options):
    found = engines.get("verl")
    fixed = {
        "data.train_batch_size": 8,
        "data.max_prompt_length": 16,
        "data.max_response_length": 12,
        f"{A}.rollout.n": 8,
        f"{A}.actor.ppo_mini_batch_size": 8,
    }
    given = {"model": "synthetic:learner-tiny", "cpu": True, "python": PYTHON, "fixed": fixed, "start_timeout_s": 300, **options}
    return found(found.Options(kind="verl", **given))


@needs_verl
@pytest.mark.engine
@pytest.mark.slow
def test_a_real_verl_trains_with_forked_workers(context, monkeypatch):
    monkeypatch.setenv("PS1", "(an activated environment) ")
    workload = workloads.get("training")
    options = workload.Options(kind="training", steps=2, warm_up_steps=1, deadline_s=200)
    parents = []

    def look(label, share):
        tagged = process.tagged(context.tag)
        parents.extend(parent for pid in tagged if (parent := forked_from(pid)) in tagged)

    job = TrialJob(number=0, configuration=Configuration(engine="verl", values={}))
    record = evaluate(job, make(fork=True), workload(options), context, look)
    assert isinstance(record.outcome, Measured), record.outcome
    assert [row.level["step"] for row in record.outcome.measurement.rows] == [2, 3]
    log = (context.folder / "training-0.log").read_text(errors="replace")
    assert "imports of its own" not in log and "(WorkerDict pid=" in log
    assert len(set(parents)) == 1, "one server, and every worker that it made carries the trial's tag"
    phases = ("imports", "ray", "runner", "trainer", "rollout", "agents", "first_step")
    assert all(record.seconds[f"start.{phase}"] > 0 for phase in phases)
    assert process.tagged(context.tag) == [] and not ray_folder(context).exists()


def forked_from(pid):
    """The parent of a worker of Ray's that runs actors; None for every other process."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::WorkerDict"):
            return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return None
