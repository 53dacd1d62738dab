"""What a model's shape and the machine rule out, whatever the engine: known before any launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autotune.models import ModelFacts
from autotune.trial import Value

_TENSOR = ("tensor_parallel_size", "tp_size")
_PIPELINE = ("pipeline_parallel_size", "pp_size")
_DATA = ("data_parallel_size", "dp_size")
_CONTEXT = ("max_model_len", "context_length")


def broken(values: Mapping[str, Value], model: ModelFacts | None, gpus: int | None) -> Iterator[str]:
    """Every limit that a configuration breaks, as sentences; `values` by the engine's own names, vLLM's or SGLang's.

    `gpus` is how many the machine has, None when that does not matter.
    """
    tensor, pipeline, data = (_first(values, names) for names in (_TENSOR, _PIPELINE, _DATA))
    needed = (tensor or 1) * (pipeline or 1) * (data or 1)
    if gpus is not None and needed > max(gpus, 1):
        yield f"It needs {needed} GPUs and there are {gpus}."
    if model is None:
        return
    if tensor and model.heads % tensor:
        yield f"The model's {model.heads} attention heads cannot be split over {tensor} tensor-parallel ranks."
    if tensor and model.kv_heads % tensor and tensor % model.kv_heads:
        yield f"The model's {model.kv_heads} KV heads cannot be split or copied evenly over {tensor} tensor-parallel ranks."
    if pipeline and pipeline > model.layers:
        yield f"The model has {model.layers} layers, fewer than the {pipeline} pipeline stages."
    length = _first(values, _CONTEXT)
    if length and length > model.max_positions:
        yield f"A context of {length} tokens is longer than the {model.max_positions} positions the model was made for."


def _first(values: Mapping[str, Value], names: tuple[str, ...]) -> int | None:
    found = (values[name] for name in names if name in values)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)
