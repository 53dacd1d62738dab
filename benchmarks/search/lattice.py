"""Measure every point of a small lattice of real GRPO runs, for search policies to be compared on. Needs `make engine-trl`.

    python benchmarks/search/lattice.py --out benchmarks/data/trl-grpo-lattice.jsonl

A run is what a trial of studies/trl_grpo_cpu.yaml launches, the same script under the same tap for as many answers, but forked
from a process that has imported everything, which takes 5 s instead of 15. Run again with the same file it goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from autotune import engines, process
from autotune.engines import _learner_model
from autotune.engines.base import Context
from autotune.engines.trl import FAMILY, HERE, read_line
from autotune.session import Step
from autotune.trial import Configuration, Value
from autotune.workloads._training_table import totals

ROOT = Path(__file__).parents[2]
LATTICE: Mapping[str, tuple[Value, ...]] = {
    "learning_rate": (1.0e-3, 3.0e-3, 1.0e-2),
    "per_device_train_batch_size": (16, 32, 128),
    "num_generations": (2, 8, 16),
}
FIXED: Mapping[str, Value] = {"max_completion_length": 12, "lr_scheduler_type": "constant", "gradient_checkpointing": False}
SAMPLES, WARM_UP, SEEDS = 2560, 2, (0, 1)
FORKING = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import datasets, tap, torch, trl.scripts.grpo, trl.trainer.grpo_trainer
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = job["argv"]
        try:
            tap.main()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
"""


def cells() -> Iterator[tuple[Mapping[str, Value], int]]:
    """Every point with every seed."""
    for values in itertools.product(*LATTICE.values()):
        for seed in SEEDS:
            yield dict(zip(LATTICE, values, strict=True)), seed


def job(values: Mapping[str, Value], seed: int, folder: Path, cache: Path, python: Path) -> dict[str, object]:
    """One run as the engine launches it, for as many steps as hold the answers."""
    found = engines.get("trl")
    steps = SAMPLES // int(str(values["per_device_train_batch_size"]))
    options = {"model": "synthetic:learner-tiny", "cpu": True, "python": python, "fixed": FIXED, "total_steps": steps}
    engine = found(found.Options.model_validate({"kind": "trl", **options}))
    context = Context(study="lattice", trial=0, tag="lattice", folder=folder, scratch=folder / "scratch", cache=cache, seed=seed)
    launch = engine.launch(Configuration(engine="trl", values=values), context).within(context)
    return {"argv": list(launch.argv[1:]), "log": str(folder / "log")}


def measured(folder: Path) -> dict[str, float]:
    """Reward and samples per second of a finished run, as the training workload reads them. Raises ValueError for a broken one."""
    lines = (folder / "steps-0.jsonl").read_text().splitlines() if (folder / "steps-0.jsonl").is_file() else []
    if not lines or json.loads(lines[-1])["event"] != "end":
        raise ValueError(f"A run broke: {(folder / 'log').read_text()[-1000:]}")
    steps = [step for line in lines if isinstance(step := read_line(json.loads(line)), Step)]
    found = totals(steps[WARM_UP:])
    return {"reward": round(found["reward"], 6), "sps": round(found["sps"], 2)}


def missing(out: Path) -> list[tuple[Mapping[str, Value], int]]:
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {json.dumps([one["values"], one["seed"]]) for one in known if "seed" in one}
    return [(values, seed) for values, seed in cells() if json.dumps([values, seed]) not in done]


def record(out: Path, python: Path, limit: int) -> None:
    todo, env = missing(out)[:limit], {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        _learner_model.make("synthetic:learner-tiny", FAMILY, place, str(python))
        folders = [place / str(index) for index in range(len(todo))]
        jobs = [job(values, seed, folder, place, python) for (values, seed), folder in zip(todo, folders, strict=True)]
        env["PYTHONPATH"] = str(_learner_model.FOLDER)
        process.run([str(python), "-c", FORKING, str(HERE)], 3600, env, stdin="".join(json.dumps(one) + "\n" for one in jobs))
        with out.open("a") as file:
            if not file.tell():
                file.write(json.dumps(head(python)) + "\n")
            for (values, seed), folder in zip(todo, folders, strict=True):
                file.write(json.dumps({"values": values, "seed": seed, **measured(folder)}) + "\n")


def head(python: Path) -> dict[str, object]:
    """Where the numbers come from."""
    found = engines.get("trl")
    identity = found(found.Options(kind="trl", model="synthetic:learner-tiny", python=python, cpu=True)).identity()
    command = "python benchmarks/search/lattice.py --out benchmarks/data/trl-grpo-lattice.jsonl"
    versions = {name: identity.packages[name] for name in ("trl", "transformers", "torch")}
    return {"date": str(datetime.date.today()), "command": command, "versions": versions, "fixed": FIXED, "samples": SAMPLES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", type=Path, default=ROOT / ".venvs" / "trl" / "bin" / "python")
    parser.add_argument("--limit", type=int, default=1000, help="runs to make at most")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    record(given.out, given.python, given.limit)
    print(f"{len(missing(given.out))} runs are missing.")


if __name__ == "__main__":
    main()
