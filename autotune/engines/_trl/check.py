"""Answers questions about TRL's own config classes, without training: a JSON question on stdin, a JSON answer as the last line.

`{"ask": "flags"}` lists every parameter; `{"ask": "check", "arguments": [...]}` builds the config of each mapping and says
why it is refused, or what it resolves to; `{"ask": "read", "config": FILE, "accelerate": FILE}` parses a config file as TRL's
own script does, and a launch file as accelerate does. Runs in TRL's own environment and imports nothing of autotune.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
import os
import pathlib
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

ONLINE = ("grpo", "rloo")
REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment")
"""What TRL's own scripts take by name (trl/scripts/grpo.py)."""


def classes(algorithm: str) -> tuple[type, ...]:
    import trl

    script = importlib.import_module(f"trl.scripts.{algorithm}")
    arguments = getattr(script, f"{algorithm.upper()}ScriptArguments", trl.ScriptArguments)
    return getattr(trl, f"{algorithm.upper()}Config"), trl.ModelConfig, arguments, trl.DatasetMixtureConfig


def kind(annotation: Any) -> str:
    """The word that autotune's Flag uses for a type."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    plain = [option for option in options if option is not type(None)]
    for wanted, word in ((dict, "json"), (list, "list"), (bool, "bool"), (float, "float"), (int, "int")):
        if any(option is wanted or typing.get_origin(option) is wanted for option in plain):
            return word
    return "str"


def default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


def plain(value: Any) -> Any:
    """A value as JSON can hold it; enums by their value, parts of a config by what is set of them."""

    def inner(other: Any) -> Any:
        if dataclasses.is_dataclass(other) and not isinstance(other, type):
            return {name: part for name, part in dataclasses.asdict(other).items() if part is not None}
        return getattr(other, "value", str(other))

    return json.loads(json.dumps(value, default=inner))


def flags(algorithm: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for holder in classes(algorithm):
        hints = typing.get_type_hints(holder)
        for field in dataclasses.fields(holder):
            found.setdefault(
                field.name,
                {
                    "name": field.name,
                    "option": f"--{field.name}",
                    "type": kind(hints[field.name]),
                    "default": plain(default(field)),
                    "help": str(field.metadata.get("help", ""))[:300],
                },
            )
    return found


def check(algorithm: str, arguments: dict[str, Any], processes: int) -> dict[str, Any]:
    known = {field.name: holder for holder in reversed(classes(algorithm)) for field in dataclasses.fields(holder)}
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            return {"refused": f"TRL has no parameter {name!r}." + (f" Did you mean {close[0]!r}?" if close else "")}
    wrong = list(text_faults(arguments, known))
    wrong += reward_faults(arguments.get("reward_funcs"))
    if wrong:
        return {"refused": wrong[0]}
    try:
        return {"resolved": resolved(algorithm, arguments, known, processes)}
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        return {"refused": str(error)}


def text_faults(arguments: dict[str, Any], known: dict[str, type]) -> Iterator[str]:
    """Texts where a number belongs: TRL's parser reads those that look like one, and its classes take any."""
    for name, value in arguments.items():
        word = kind(typing.get_type_hints(known[name])[name]) if isinstance(value, str) else ""
        convert = {"int": int, "float": float}.get(word)
        if convert is not None and not readable(value, convert):
            yield f"{name} must be a number, not {value!r}."


def readable(text: str, convert: type) -> bool:
    try:
        convert(text)
    except ValueError:
        return False
    return True


def reward_faults(names: Any) -> Iterator[str]:
    if names is not None and not isinstance(names, list):
        yield f"reward_funcs must be a list, such as [{names}]."
        return
    yield from (problem for name in names or () if (problem := reward_fault(str(name))) is not None)


def reward_fault(name: str) -> str | None:
    """Why TRL's script could not load a reward function of that name; what its module prints stays out of the answer. A module
    that fails for want of a GPU or of a network, which are not here, may be sound where it trains."""
    path, _, function = name.rpartition(".")
    if not path:
        own = f"{name!r} is no reward of TRL's, which are {', '.join(REWARDS)}; a reward of your own is named module.function."
        return None if name in REWARDS else own
    if not all(part.isidentifier() for part in name.split(".")):
        return f"The reward {name!r} is not of the form module.function."
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(path)
    except (ImportError, SyntaxError, NameError, SystemExit) as error:
        return f"The module of the reward {name!r} cannot be imported: {type(error).__name__}: {error}."
    except Exception:
        return None
    close = difflib.get_close_matches(function, vars(module), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return None if callable(getattr(module, function, None)) else f"The module {path!r} has no function {function!r}.{hint}"


def resolved(algorithm: str, arguments: dict[str, Any], known: dict[str, type], processes: int) -> dict[str, Any]:
    """Every parameter as the trainer would run it. Raises what TRL raises."""
    result: dict[str, Any] = {}
    for holder in dict.fromkeys(known.values()):
        own = {name: value for name, value in arguments.items() if known.get(name) is holder}
        if holder.__name__ == f"{algorithm.upper()}Config":
            # The arithmetic of batches reads the number of processes; the checks do not need the GPUs to be there.
            holder = type(holder.__name__, (holder,), {"world_size": property(lambda _: processes)})
            own = {**own, "output_dir": "unused", "use_cpu": True, "bf16": False, "fp16": False}
        made = holder(**own)
        result |= {field.name: plain(getattr(made, field.name)) for field in dataclasses.fields(made)}
    result |= {name: arguments[name] for name in ("bf16", "use_cpu", "fp16") if name in arguments}
    # TRL fills these two in from other parameters; told as they were asked, they stay true when those change.
    result |= {name: arguments.get(name) for name in ("generation_batch_size", "steps_per_generation")}
    if algorithm in ONLINE and result["num_generations"] < 2:
        raise ValueError("num_generations must be 2 or more: an advantage needs a group to compare with.")
    return result


def read(algorithm: str, config: str, accelerate: str) -> dict[str, Any]:
    """Every value that the script would see, and how accelerate would launch it. Raises what either raises."""
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    parser = importlib.import_module(f"trl.scripts.{algorithm}").make_parser()
    # What asks for a GPU is refused where none is in view, and a file is read on machines that have none.
    parsed = parser.parse_args_and_config(["--config", config, "--use_cpu", "true"], fail_with_unknown_args=True)
    values: dict[str, Any] = {}
    for holder in parsed:
        if dataclasses.is_dataclass(holder):
            values |= {field.name: plain(getattr(holder, field.name)) for field in dataclasses.fields(holder)}
    with pathlib.Path(config).open() as file:
        values["use_cpu"] = yaml.safe_load(file).get("use_cpu", False)
    launch = load_config_from_file(accelerate)
    return {"values": values, "processes": launch.num_processes, "distributed": str(launch.distributed_type)}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    question = json.load(sys.stdin)
    if question["ask"] == "flags":
        answer: Any = flags(question["algorithm"])
    elif question["ask"] == "read":
        answer = read(question["algorithm"], question["config"], question["accelerate"])
    else:
        answer = [check(question["algorithm"], one, question["processes"]) for one in question["arguments"]]
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
