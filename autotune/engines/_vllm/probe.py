"""Asks the installed vLLM about itself. Runs in the engine's interpreter, so it imports nothing of autotune.

    python probe.py flags                              [{"name", "option", "negation", "type", ...}, ...]
    python probe.py resolve   (a JSON list on stdin)   [{"refused"} or {"resolved"}, ...], one an entry
    python probe.py parse     (an argv on stdin)       {"parsed"} or {"refused"}: the values that the parser read

An entry of `resolve` is {"argv": [...], "env": {...}}. The answer is one JSON value on the last line of standard output.
Types, choices and defaults are read from vLLM's argument parser, ranges from the pydantic fields behind it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

LISTS = ("+", "*")
NUMBERS = {"int": "int", "float": "float", "human_readable_int": "int", "human_readable_int_or_auto": "int"}
MAPPINGS = ("parse_dataclass", "loads", "union_dict_and_str", "dict")


class Refused(Exception):
    """The parser said no."""


def make_parser() -> argparse.ArgumentParser:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))

    def refuse(message: str) -> None:
        raise Refused(message)

    parser.error = refuse  # type: ignore[method-assign,assignment]
    return parser


def flags() -> list[dict[str, Any]]:
    ranges = field_ranges()
    return [described for action in make_parser()._actions if (described := describe(action, ranges)) is not None]


def describe(action: argparse.Action, ranges: Mapping[str, tuple[float | None, float | None]]) -> dict[str, Any] | None:
    """One action of the parser; None for positionals and help."""
    options = [option for option in action.option_strings if option.startswith("--")]
    if not options or isinstance(action, argparse._HelpAction):
        return None
    own = "--" + action.dest.replace("_", "-")
    positive = [option for option in options if not option.startswith("--no-") or option == own]
    negative = [option for option in options if option not in positive]
    low, high = ranges.get(action.dest, (None, None))
    return {
        "name": action.dest,
        "option": own if own in positive else positive[0],
        "negation": negative[0] if negative else None,
        "type": kind(action),
        "choices": list(action.choices) if action.choices is not None else None,
        "default": plain(action.default),
        "low": low,
        "high": high,
        "help": " ".join((action.help or "").split())[:300],
    }


def kind(action: argparse.Action) -> str:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return "bool"
    if action.nargs in LISTS:
        return "list"
    name = getattr(unwrapped(action.type), "__name__", "str")
    return "json" if name in MAPPINGS else NUMBERS.get(name, "str")


def unwrapped(converter: Any) -> Any:
    """vLLM wraps converters (`optional_type(int)`); the closure holds the one inside."""
    while True:
        cells = [cell.cell_contents for cell in getattr(converter, "__closure__", None) or ()]
        inner = next((content for content in cells if callable(content)), None)
        if inner is None:
            return converter
        converter = inner


def field_ranges() -> dict[str, tuple[float | None, float | None]]:
    """Lowest and highest value of each field of vLLM's config classes; a bound above zero on a whole number is one."""
    import vllm.config

    found: dict[str, tuple[float | None, float | None]] = {}
    for config in vars(vllm.config).values():
        for name, field in getattr(config, "__pydantic_fields__", {}).items():
            bounds = {type(part).__name__: part for part in field.metadata}
            low = bounds["Ge"].ge if "Ge" in bounds else bounds["Gt"].gt if "Gt" in bounds else None
            high = bounds["Le"].le if "Le" in bounds else bounds["Lt"].lt if "Lt" in bounds else None
            if "Gt" in bounds and low is not None and "float" not in str(field.annotation):
                low += 1
            if low is not None or high is not None:
                found.setdefault(name, (low, high))
    return found


def resolve(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """vLLM's own cross-check of each entry, and the values it would run with."""
    parser = make_parser()
    return [resolve_one(parser, entry["argv"], entry.get("env", {})) for entry in entries]


def resolve_one(parser: argparse.ArgumentParser, argv: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    with environment(env):
        try:
            args = parser.parse_args(argv)
            args.model = getattr(args, "model_tag", None) or args.model
            config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
        except (Exception, SystemExit) as error:
            return {"refused": reason(error)}
    values = {name: plain(value) for name, value in vars(args).items()}
    return {"resolved": {name: value for name, value in {**values, **flat(config)}.items() if value is not None}}


def reason(error: BaseException) -> str:
    """The engine's own message, without pydantic's frame around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix("Value error, ").partition(" [type=")[0] for line in lines if line.startswith("Value error, ")]
    return "; ".join(said) or f"{type(error).__name__}: {' '.join(lines)}"[:500].removeprefix("Refused: ")


def flat(config: Any) -> dict[str, Any]:
    """Every scalar of the configuration's parts by field name, parts in a fixed order, the first to have a name wins."""
    found: dict[str, Any] = {}
    for part in ("cache", "scheduler", "parallel", "model", "load", "compilation", "attention", "offload"):
        for name, value in vars(getattr(config, f"{part}_config", None) or argparse.Namespace()).items():
            if not name.startswith("_"):
                found.setdefault(name, plain(value))
    found["kv_cache_dtype"] = found.pop("cache_dtype", None)
    return found


def parse(argv: list[str]) -> dict[str, Any]:
    try:
        return {"parsed": {name: plain(value) for name, value in vars(make_parser().parse_args(argv)).items()}}
    except (Exception, SystemExit) as error:
        return {"refused": reason(error)}


def plain(value: Any) -> Any:
    """A JSON value for what has one; None for the rest."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    return str(value).removeprefix("torch.") if type(value).__name__ == "dtype" else None


@contextlib.contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Also undoes what vLLM itself sets while it resolves a configuration."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    answer_stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.read() or "[]")
    answers: dict[str, Callable[[], Any]] = {"flags": flags, "resolve": lambda: resolve(asked), "parse": lambda: parse(asked)}
    print(json.dumps(answers[sys.argv[1]](), default=str), file=answer_stream, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
