"""Writes a first study.yaml, commented, for this machine and model."""

from __future__ import annotations

import json
import re
from pathlib import Path

from autotune import engines, gpu, spaces
from autotune.engines import _environment
from autotune.errors import AutotuneError, NotFound, nearest

_QUOTED = re.compile(r"[^\w./:+-]|:$")
"""What in a model's name YAML could take for its own."""

_CLIMB = "  - maximize: slo_request_rate    # what the preset's climb finds: the highest rate that keeps its bounds\n"
_TOKENS = "  - maximize: output_tokens_per_s\n"
_GOALS = {
    "chat": _CLIMB,
    "offline": _TOKENS,
    "code-completion": _CLIMB,
    "shared-prefix": f"{_TOKENS}  - minimize: ttft_ms.p99\n",
}
"""What each use is after, memory aside. A climb's latencies are those of every rate that it tries, the drowned ones too."""
_LIMITS = '# constraints: ["ttft_ms.p99 <= 500", "tpot_ms.p95 <= 50"]\n'
USES = tuple(_GOALS)

_SERVING = """\
# A study: what is tuned, under which traffic, for which goals. Check it with: autotune check {file}
name: {name}
engine:
  kind: {engine}
  model: {model}            # synthetic:NAME (random weights, made locally), a local folder, or a hub name
{python}  # fixed: {{max_model_len: 8192}}   # flags every trial gets
workload:
  kind: http
  preset: {use}              # traffic, load levels and bounds for this use; anything below overrides it
  # traffic: {{input_tokens: {{uniform: [256, 768]}}, output_tokens: {{uniform: [64, 192]}}}}
  # load: [{{request_rate: 10}}, {{request_rate: 40}}, {{concurrency: 256}}]
  # window: {{warm_up_s: 5, measure_s: 20, deadline_s: 60}}
search_space:
  include: {space}             # every parameter marked `tuned` in search_spaces/{space}.yaml
  # select: [max_num_seqs, max_num_batched_tokens]           # or only these
  # override: {{max_num_seqs: [64, 128, 256, 512]}}            # a list of values, low/high, or one value that fixes it
objectives:
{goals}  - minimize: {memory}
{limits}budget: {{trials: {trials}, gpu_minutes: {minutes}}}
export: [{exporter}]
"""

_TRAINING = """\
# A study of a training run. Check it with: autotune check {file}
name: {name}
engine:
  kind: {engine}
  model: {model}
{python}{data}workload:
  kind: training
  steps: 30                    # throughput knobs are judged in 10 to 30 steps; learning rates and KL need longer runs
  warm_up_steps: 3
search_space:
  include: {space}
objectives:
  - maximize: sps
  - minimize: {memory}
budget: {{trials: {trials}, gpu_minutes: {minutes}}}
export: [{exporter}]
"""


_RECORDED = """\
# A study that replays recorded measurements: it needs no GPU and takes seconds. Check it with: autotune check {file}
name: {name}
engine: {{kind: recorded}}
workload: {{kind: recorded, traffic: chat}}
search_space:
  include: {space}
objectives:
  - maximize: output_tokens_per_s
  - minimize: peak_gpu_memory_gib
budget: {{trials: 30}}
"""
_TEMPLATES = {"http": _SERVING, "training": _TRAINING, "recorded": _RECORDED}
_MODELS = {"http": "synthetic:tiny", "training": "synthetic:learner-tiny", "recorded": "recorded"}
_DATA = "  dataset: prompts.parquet    # a folder, a file or a hub name; a synthetic model brings its own\n{reward}"
_REWARDS = {"trl": "my_rewards.score", "verl": "my_rewards.py:score"}
"""How a reward of the user's own is named."""


def write(out: Path, *, engine: str, model: str | None, use: str, force: bool) -> None:
    """Write a study that `autotune check` accepts. Raises NotFound, AutotuneError (the file is there already)."""
    kind = engines.get(engine)
    model = model or _MODELS[kind.serves]
    if use not in USES:
        close = nearest(use, USES)
        raise NotFound(f"There is no use {use!r}; there are {', '.join(USES)}." + (f" Did you mean {close!r}?" if close else ""))
    if out.exists() and not force:
        raise AutotuneError(f"{out} is there already; --force overwrites it.")
    on_gpu = bool(gpu.devices())
    shipped = spaces.available()
    space = next((name for name in (engine, *shipped) if name in shipped and name.startswith(engine)), None)
    if space is None:
        raise NotFound(f"No search space ships for the engine {engine!r}; write its study by hand, with search_space.parameters.")
    text = _TEMPLATES[kind.serves].format(
        file=out,
        name=_name(out.stem),
        engine=engine,
        model=json.dumps(model) if _QUOTED.search(model) else model,
        use=use,
        goals=_GOALS[use],
        limits="" if _GOALS[use] == _CLIMB else _LIMITS,
        python=f"  python: {own}\n" if (own := _environment.usual(engine)).exists() else "",
        data=("" if model.startswith("synthetic:") else _data(engine)) + ("" if on_gpu else "  cpu: true\n"),
        space=space,
        memory="peak_gpu_memory_gib" if on_gpu else "peak_memory_gib",
        trials=40 if on_gpu else 10,
        minutes=90 if on_gpu else 15,
        exporter={"trl": "trl_yaml", "verl": "verl_overrides"}.get(engine, "shell"),
    )
    try:
        out.write_text(text)
    except OSError as error:
        raise AutotuneError(f"Cannot write {out}: {error.strerror}.") from error


def _data(engine: str) -> str:
    """The lines that a model of the user's own needs."""
    reward = (
        f"  # reward: {_REWARDS[engine]}    # a function of your own, found from where autotune is run\n"
        if engine in _REWARDS
        else ""
    )
    return _DATA.format(reward=reward)


def _name(stem: str) -> str:
    """A file's name as a study's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64] or "study"
