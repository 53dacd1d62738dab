"""Which GPUs are free: leased for each trial, against other drivers of the machine too, and quarantined when lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from autotune.gpu import Device


class Leases:
    """Which GPUs are free. A lease holds against other drivers of this machine too, through a lock file for each GPU."""

    def __init__(self, found: Sequence[Device]) -> None:
        self.devices = {device.index: device for device in found}
        self.quarantined: dict[int, str] = {}
        self._locks: dict[int, int] = {}

    @property
    def usable(self) -> int:
        """GPUs that are not quarantined, leased or not."""
        return len(self.devices) - len(self.quarantined)

    def lease(self, count: int) -> tuple[int, ...] | None:
        """Take so many GPUs, or None when not so many are free now."""
        taken: list[int] = []
        for index, device in self.devices.items():
            if len(taken) == count:
                break
            if index not in self.quarantined and index not in self._locks and (lock := _take(_lock_path(device))) is not None:
                self._locks[index] = lock
                taken.append(index)
        if len(taken) == count:
            return tuple(taken)
        self.give_back(taken)
        return None

    def give_back(self, gpus: Iterable[int]) -> None:
        """Return GPUs; ones that are not leased are passed over."""
        for index in gpus:
            lock = self._locks.pop(index, None)
            if lock is not None:
                with contextlib.suppress(OSError):
                    _lock_path(self.devices[index]).unlink()
                os.close(lock)

    def quarantine(self, index: int, reason: str) -> None:
        """Never lease this GPU again."""
        self.quarantined[index] = reason


def _lock_path(device: Device) -> Path:
    """The same for every user of the machine, whatever their own temporary folder is."""
    return Path("/tmp") / f"autotune-{device.uuid}.lock"


def _take(path: Path) -> int | None:
    """The locked file, or None when another driver has it. A file that its holder has just removed is tried anew."""
    while True:
        fd = _opened(path)
        if fd is None:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        if _is_still(path, fd):
            return fd
        os.close(fd)


def _opened(path: Path) -> int | None:
    """The file, created if need be. Another user's, left by a killed driver, can only be read, which is enough to lock it."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    return None


def _is_still(path: Path, fd: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False
