"""How long a verl trial takes from its launch to its first step, with workers that import everything and with forked ones.

    python benchmarks/verl_start.py [STUDY] [--rounds 3]

Runs the default configuration of the study's verl engine, in turns without and with `fork`, and stops each run once its first
step is seen. Printed: seconds by phase of every run, the peak memory of the tree, how many workers were forked.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
from pathlib import Path

import yaml

from autotune import engines, process
from autotune.engines.base import Context
from autotune.trial import Configuration

PHASES = ("imports", "ray", "runner", "trainer", "rollout", "agents", "first_step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=Path("studies/verl_grpo_cpu.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    section = yaml.safe_load(arguments.study.read_text())["engine"]
    print(f"{datetime.date.today()}  {os.cpu_count()} cores  {arguments.study}\n")
    print("| workers | start | " + " | ".join(PHASES) + " | load | GiB |\n|---" + "|---:" * (len(PHASES) + 3) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2 * arguments.rounds):
            print(row(section, bool(number % 2), Path(folder), number), flush=True)


def row(section: dict[str, object], fork: bool, folder: Path, number: int) -> str:
    found = engines.get("verl")
    engine = found(found.Options.model_validate({**section, "fork": fork}))
    context = Context(
        study="verl-start",
        trial=number,
        tag=process.make_tag(folder, "verl-start", number),
        folder=folder / str(number),
        scratch=folder / f"scratch-{number}",
        cache=folder / "cache",
    )
    load = os.getloadavg()[0]
    session = engine.open(engine.launch(Configuration(engine="verl", values={}), context).within(context), context)
    try:
        seconds = session.wait_ready()["seconds"]
        memory = session.resources()["peak_memory_gib"]
    finally:
        session.stop()
    assert process.tagged(context.tag) == [], "nothing is left of a run"
    own = (context.folder / "training-0.log").read_text(errors="replace").count("with imports of its own")
    cells = [sum(seconds.values()), *(seconds.get(phase, 0.0) for phase in PHASES), load]
    kind = f"forked, {own} refused" if fork and own else "forked" if fork else "spawned"
    return f"| {kind} | " + " | ".join(f"{cell:.1f}" for cell in cells) + f" | {memory:.2f} |"


if __name__ == "__main__":
    main()
