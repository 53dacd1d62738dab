"""Asks the installed SGLang about itself. Runs in the engine's interpreter, so it imports nothing of autotune.

    python _sglang_probe.py identity                        {"python", "device", "packages"}
    python _sglang_probe.py flags                           [{"name", "option", "negation", "type", ...}, ...]
    python _sglang_probe.py parse     (argvs on stdin)      [{"refused"} or {"parsed"}, ...], one an argv, `--config` files read
    python _sglang_probe.py resolve   (argvs on stdin)      [{"refused"} or {"resolved"}, ...], with defaults and cross-checks

The answer is one JSON value on standard output; whatever SGLang prints goes to standard error. The flags are read from the
argument parser, because the class behind it changed kind between releases (a dataclass in 0.5.17, an msgspec Struct since).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("sglang", "torch", "transformers", "triton", "sglang-kernel", "sgl-kernel", "flashinfer-python", "xgrammar")
LAUNCHER = Path(__file__).with_name("_sglang_cpu") / "launch.py"
NUMBERS = {"int": "int", "float": "float", "json_loads": "json", "loads": "json", "human_readable_int": "int", "bool": "bool"}


def identity() -> dict[str, Any]:
    import torch

    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"python": platform.python_version(), "device": device, "packages": packages}


def flags() -> list[dict[str, Any]]:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        flag = describe(action)
        # Several spellings can set one value: the one of its own name wins over deprecated ones.
        if flag is not None and (flag["name"] not in found or flag["option"] == spelled(action.dest)):
            found[flag["name"]] = flag
    return list(found.values())


def spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def describe(action: argparse.Action) -> dict[str, Any] | None:
    """One action of the parser; None for what is not a flag that sets something."""
    options = [option for option in action.option_strings if option.startswith("--")]
    if not options or isinstance(action, argparse._HelpAction):
        return None
    positive = [option for option in options if not option.startswith("--no-")]
    negative = [option for option in options if option.startswith("--no-")]
    own = spelled(action.dest)
    return {
        "name": action.dest,
        "option": own if own in positive else (positive or options)[0],
        "negation": negative[0] if positive and negative else None,
        "type": kind(action),
        "choices": list(action.choices) if action.choices is not None else None,
        "default": plain(action.default),
        "help": " ".join((action.help or "").split())[:400],
    }


def kind(action: argparse.Action) -> str:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return "bool"
    if action.nargs in ("+", "*") or isinstance(action.nargs, int):
        return "list"
    return NUMBERS.get(getattr(action.type, "__name__", "str"), "str")


def parse(argv: list[str]) -> dict[str, Any]:
    """What the parser reads from an argv, as SGLang's own launcher would, without its defaults and cross-checks."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang", argument_default=argparse.SUPPRESS)
    ServerArgs.add_cli_args(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    merged = config_merger()(parser).merge_config_with_args(argv) if "--config" in argv else argv
    return {"parsed": plain(vars(parser.parse_args(merged)))}


def config_merger() -> Any:
    """What reads `--config`; it moved between 0.5.17 and 0.5.23."""
    for place in ("sglang.srt.utils.server_args_config_parser", "sglang.srt.server_args_config_parser"):
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(place).ConfigArgumentMerger
    raise ImportError("this SGLang has no parser of --config files where others have it")


def resolve(argv: list[str]) -> dict[str, Any]:
    from sglang.srt.server_args import prepare_server_args

    args = prepare_server_args(argv)
    if hasattr(args, "resolve_once"):
        args.resolve_once()
    args.check_server_args()
    return {"resolved": plain(args.resolved_dict() if hasattr(args, "resolved_dict") else vars(args))}


def answered(ask: Any, argv: list[str]) -> dict[str, Any]:
    """The answer for one argv, or what SGLang said when it refused it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return dict(ask(argv))
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        return {"refused": lines[-1].split("error:", 1)[1].strip() if lines else said.getvalue().strip()[-300:]}
    except Exception as error:
        return {"refused": str(error).strip() or asserted(error)}


def asserted(error: BaseException) -> str:
    """An assertion without a message: its source line says what it wanted."""
    frames = traceback.extract_tb(error.__traceback__)
    line = frames[-1].line if frames else ""
    return re.sub(r"^assert\s+", "SGLang asserts ", line or type(error).__name__)


def plain(value: Any) -> Any:
    """A value as JSON holds it; what JSON cannot hold becomes its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


@contextlib.contextmanager
def own_output() -> Iterator[Any]:
    """Standard output kept for the answer: prints of SGLang and of C libraries go to standard error."""
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        yield answer


def main() -> None:
    # This file's folder holds a sglang.py of autotune's, which must not be found in the place of SGLang.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    with own_output() as answer:
        what = sys.argv[1]
        if what != "identity":
            runpy.run_path(str(LAUNCHER))["stand_in"]()
        if what in ("identity", "flags"):
            json.dump(identity() if what == "identity" else flags(), answer)
        else:
            ask = parse if what == "parse" else resolve
            json.dump([answered(ask, argv) for argv in json.load(sys.stdin)], answer)


if __name__ == "__main__":
    main()
