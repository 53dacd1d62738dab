"""Reads the kernel's process table: who is alive, whose child, which tag.

Reads only `/proc` (Linux) and ends nothing. A process is identified by its id and its start time together, so that an id
that was used again is never taken for the process that had it before.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TAG_VARIABLE = "AUTOTUNE_TAG"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_SETTLED_S = 10.0
_known_tags: dict[tuple[int, int], str | None] = {}


@dataclass(frozen=True, slots=True)
class Proc:
    """One live process. `start` is clock ticks since boot; `state` is the kernel's letter (Z is a zombie)."""

    pid: int
    start: int
    ppid: int
    sid: int
    state: str

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from a later process of the same id."""
        return (self.pid, self.start)

    @property
    def ended(self) -> bool:
        """A zombie holds no memory, port or device: it only waits for its parent to read its exit status."""
        return self.state in "ZX"


@dataclass(frozen=True, slots=True)
class Tag:
    """What an AUTOTUNE_TAG says: the store, the trial, and the driver that started it (with its start time and pid namespace)."""

    store: str
    namespace: int
    driver: int
    driver_start: int
    study: str
    trial: str
    nonce: str

    def __str__(self) -> str:
        parts = (self.store, self.namespace, self.driver, self.driver_start, self.study, self.trial, self.nonce)
        return "at1:" + ":".join(str(part) for part in parts)


def look(pid: int) -> Proc | None:
    """The process of this id, or None when there is none."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Proc(pid, int(fields[19]), int(fields[1]), int(fields[3]), fields[0].decode())


def table() -> dict[int, Proc]:
    """Every process that is visible here, zombies aside."""
    found = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - half the time of iterdir, and it runs often
    return {proc.pid: proc for proc in found if proc is not None and not proc.ended}


def tag_of(pid: int) -> str | None:
    """The process's AUTOTUNE_TAG; None when it has none or belongs to somebody else."""
    return variable(pid, TAG_VARIABLE)


def variable(pid: int, name: str) -> str | None:
    """A variable of the environment that the process was started with; None when it has none or belongs to somebody else."""
    prefix = name.encode() + b"="
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def tags(everything: Mapping[int, Proc]) -> dict[int, str]:
    """The tags of those processes that have one.

    What was read of a process that is past its first seconds is kept: an environment is given at exec, and what we start
    execs at once. It makes a look at a machine with thousands of processes cheap.
    """
    global _known_tags
    settled = (time.clock_gettime(time.CLOCK_BOOTTIME) - _SETTLED_S) * _TICKS_PER_S
    known = _known_tags
    found = {pid: known[one.identity] if one.identity in known else tag_of(pid) for pid, one in everything.items()}
    # A new mapping, not a changed one: samplers look from threads of their own.
    _known_tags = {one.identity: found[pid] for pid, one in everything.items() if one.start < settled}
    return {pid: tag for pid, tag in found.items() if tag is not None}


def members(tag: str | None, leader: tuple[int, int] | None = None, known: Iterable[tuple[int, int]] = ()) -> list[Proc]:
    """Every live process of one trial: those that carry the tag, those in the session of the leader or of a tagged process,
    those seen earlier (`known`, by identity), and all their descendants. Never this process or one of its ancestors.
    """
    everything = table()
    seen = set(known) | ({leader} if leader else set())
    tagged_pids = {pid for pid, own in tags(everything).items() if own == tag}
    roots = tagged_pids | {pid for pid, proc in everything.items() if proc.identity in seen}
    sessions = {everything[pid].sid for pid in tagged_pids if everything[pid].sid in tagged_pids}
    if leader is not None and (leader[0] not in everything or everything[leader[0]].identity == leader):
        sessions.add(leader[0])
    roots |= {pid for pid, proc in everything.items() if proc.sid in sessions}
    return [everything[pid] for pid in sorted(_with_descendants(roots, everything) - lineage(everything))]


def without_children(found: Iterable[Proc], but: int) -> list[Proc]:
    """Leaves out this process's own children, except one, and what descends from them."""
    found = list(found)
    others = {one.pid for one in found if one.ppid == os.getpid() and one.pid != but}
    beside = _with_descendants(others, {one.pid: one for one in found}) if others else set()
    return [one for one in found if one.pid not in beside]


def tagged(tag: str) -> list[int]:
    """Ids of the live processes that carry the tag."""
    return sorted(pid for pid, own in tags(table()).items() if own == tag)


def lineage(everything: Mapping[int, Proc] | None = None) -> set[int]:
    """This process and its ancestors."""
    everything = table() if everything is None else everything
    line, pid = set[int](), os.getpid()
    while pid > 0 and pid not in line:
        line.add(pid)
        pid = everything[pid].ppid if pid in everything else 0
    return line


def store_digest(store: Path) -> str:
    """Names a store inside a tag."""
    return hashlib.sha256(str(store.resolve()).encode()).hexdigest()[:12]


def pid_namespace() -> int:
    """The inode of this process's pid namespace: ids of another namespace mean nothing here."""
    return Path("/proc/self/ns/pid").stat().st_ino


def make_tag(store: Path, study: str, trial: int | str, attempt: int = 1) -> str:
    """A tag for one attempt at one trial, carrying this process as its driver. No two calls return the same."""
    me = look(os.getpid())
    assert me is not None, "this process is in the process table"
    name = re.sub(r"[^A-Za-z0-9._-]", "_", study)[:64]
    return str(Tag(store_digest(store), pid_namespace(), me.pid, me.start, name, f"{trial}-{attempt}", secrets.token_hex(4)))


def parse_tag(text: str) -> Tag | None:
    """The tag's parts; None when it is not one of ours."""
    parts = text.split(":")
    if len(parts) != 8 or parts[0] != "at1" or not all(part.isdecimal() for part in parts[2:5]):
        return None
    return Tag(parts[1], int(parts[2]), int(parts[3]), int(parts[4]), parts[5], parts[6], parts[7])


def driver_alive(tag: Tag) -> bool:
    """Whether the driver that made the tag still runs. One in another pid namespace cannot be judged and counts as alive."""
    if tag.namespace != pid_namespace():
        return True
    proc = look(tag.driver)
    return proc is not None and proc.start == tag.driver_start and not proc.ended


def _read(path: str) -> bytes:
    """A whole small file of the kernel's; empty when it cannot be read. Twice as fast as pathlib, and read very often."""
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123
            return stream.readall() or b""
    except OSError:
        return b""


def _with_descendants(roots: set[int], everything: Mapping[int, Proc]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, proc in everything.items():
        children.setdefault(proc.ppid, []).append(pid)
    found, queue = set[int](), list(roots)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += children.get(pid, ())
    return found
