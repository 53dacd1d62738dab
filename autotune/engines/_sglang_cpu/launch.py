"""Starts SGLang's own server on a machine without a GPU: `python launch.py <flags of sglang.launch_server>`.

Imports nothing of autotune, because it runs in the engine's environment. SGLang starts its scheduler and detokenizer by
spawning, which imports this file again in each of them, so they get the stand-ins too.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

STAND_IN = Path(__file__).with_name("stand_in")
NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def stand_in() -> None:
    """Put the stand-ins in place where the real thing is missing, once."""
    import torch

    if importlib.util.find_spec("sgl_kernel") is None:
        sys.path.append(str(STAND_IN))
    if torch.version.cuda is None:
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(f"torchvision::{operator}", NMS)


if __name__ in ("__main__", "__mp_main__"):
    stand_in()
if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
