"""NVML as a node without GPUs finds it in tests: eight GPUs that use as many bytes as the file FAKE_NVML says."""

import os
from pathlib import Path
from types import SimpleNamespace


class NVMLError(Exception):
    pass


def nvmlInit():
    pass


def nvmlDeviceGetCount():
    return 8


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(total=80 << 30, used=int(Path(os.environ["FAKE_NVML"]).read_text()))
