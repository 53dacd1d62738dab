"""What the driver and Ray Tune's loop say to each other."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict

import ray

from autotune.bar import Bar
from autotune.executors import _ray_cluster


class Order(TypedDict):
    """What Tune calls a trial's configuration. `key` names the attempt; trials of one `line` use each other's groups."""

    key: str
    job: str
    gpus: int
    cpus: int
    line: int


class Held(NamedTuple):
    """GPUs of a node that are kept from further trials, and why; used again when there is no message."""

    node: str
    host: str
    gpus: int
    messages: tuple[str, ...]


class Seen(NamedTuple):
    """Where an attempt was placed: its node and the GPUs that it has there, as NVML counts them, and once it was asked to tell,
    what is installed there, or why the engine cannot run."""

    node: str
    host: str
    gpus: tuple[int, ...]
    installed: Mapping[str, str] | str | None


class Reply(NamedTuple):
    """What an attempt that was placed does: it is to `tell` what is installed there first; to `run` and reach its bar; to `go`,
    since nobody waits for it any more; or to `stay` and do nothing, so that nothing else is placed there."""

    to: Literal["tell", "run", "go", "stay"]
    bar: Bar | None = None


class News(NamedTuple):
    """What happened to an attempt: it was `placed` where the content says and waits for its reply; its `record` came, or it was
    `lost`; its GPUs' memory is still `held`, or no more; Tune made it a `folder`; the whole loop `ended` by itself."""

    kind: Literal["placed", "record", "lost", "held", "folder", "ended"]
    key: str
    content: Any = None


class Desk:
    """Between the driver and Tune's loop, which may be another process."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._hung: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its parts into its snapshots, of which nothing is ever made again."""
        return type(self), ()

    def order(self, order: Order) -> None:
        """From the driver: run this too."""
        self._orders.put(order)

    def heard(self, timeout_s: float) -> News | None:
        """To the driver; each `placed` has to be answered with `reply`."""
        with contextlib.suppress(queue.Empty):
            return self._news.get(timeout=timeout_s)
        return None

    def reply(self, reply: Reply) -> None:
        """From the driver, to the attempt that was placed."""
        self._replies.put(reply)

    def end(self, key: str) -> None:
        """From the driver: kill the worker of an attempt that nobody waits for any more."""
        self._hung.put(key)

    def hung(self) -> str | None:
        """To Tune: the next attempt to be killed."""
        return self._hung.get() if not self._hung.empty() else None

    def close(self) -> None:
        """From the driver: end everything."""
        self._closed.set()
        self._orders.put(None)
        self._replies.put(Reply("go"))

    def closed(self) -> bool:
        return self._closed.is_set()

    def take(self, timeout_s: float) -> Order | None:
        """To Tune: the next order; None when none came within the time."""
        with contextlib.suppress(queue.Empty):
            return self._orders.get(timeout=timeout_s)
        return None

    def tell(self, news: News) -> None:
        """From Tune."""
        self._news.put(news)

    def placed(self, key: str, seen: Seen) -> Reply:
        """To Tune, when an attempt was placed: what the driver answers."""
        if self.closed():
            return Reply("go")
        self._news.put(News("placed", key, seen))
        return self._replies.get()


class FarDesk:
    """A desk on the cluster's head, which the driver and Tune's loop both reach."""

    def __init__(self) -> None:
        self._actor = ray.remote(Desk).options(num_cpus=0, max_concurrency=8, resources=_ray_cluster.HEAD).remote()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_actor":
            raise AttributeError(name)
        return lambda *arguments: ray.get(getattr(self._actor, name).remote(*arguments))
