"""Locks on pieces of work for processes and machines that share a folder, with takeover when an owner dies.

An owner is a file ``NAME.owner-1`` with host, process and start time, created exclusively, which NFS can do too. The
process touches it now and then: that is the heartbeat. Work whose owner is dead is taken over by creating ``owner-2``,
and so on; the highest number owns. No file of another process is removed before the work is given back, so two
processes that find the same dead owner cannot both take its place.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Owner:
    """One turn of owning a piece of work.

    Args:
        path: the file that says so.
        token: what tells it from all others.
        previous: who owned the work and died, in words; empty without such an owner.
    """

    path: Path
    token: str
    previous: str

    def holds(self) -> bool:
        """Return whether the work is still this owner's, and nobody took it for dead."""
        turn, name = _turn(self.path), self.path.name.rpartition(".owner-")[0]
        return _read(self.path).get("token") == self.token and max(_turns(self.path.parent, name)) == turn


class Ownership:
    """Takes pieces of work by name, and gives them back.

    An owner on this machine is dead when its process is. An owner elsewhere is dead when its heartbeat has not changed
    for ``patience`` seconds of watching it; clocks of machines are not compared.

    Args:
        folder: where the files lie; it must exist.
        heartbeat: seconds between two signs of life.
        patience: seconds without one after which an owner on another machine is dead.
    """

    def __init__(self, folder: Path, *, heartbeat: float = 15, patience: float = 180) -> None:
        self.folder, self.heartbeat, self.patience = folder, heartbeat, patience
        self._seen: dict[Path, tuple[int, float]] = {}  # the last heartbeat of an owner elsewhere, and when it was new

    @contextmanager
    def take(self, name: str) -> Iterator[Owner | None]:
        """Own a piece of work inside the ``with`` block; None where another living process does."""
        owner = self._create(name)
        if owner is None:
            yield None
            return
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(owner.path, done), daemon=True)
        beat.start()
        try:
            yield owner
        finally:
            done.set()
            beat.join()
            if owner.holds():
                for turn in _turns(self.folder, name):  # ascending: a dead owner is never the last
                    _path(self.folder, name, turn).unlink(missing_ok=True)

    def owner_of(self, name: str) -> str:
        """Return who owns a piece of work, in words; empty where nobody does."""
        turns = _turns(self.folder, name)
        return _describe(_read(_path(self.folder, name, turns[-1]))) if turns else ""

    def _create(self, name: str) -> Owner | None:
        turns, previous = _turns(self.folder, name), ""
        if turns:
            last = _path(self.folder, name, turns[-1])
            if self._alive(last):
                return None
            previous = _describe(_read(last)) or "unknown"
        owner = Owner(_path(self.folder, name, turns[-1] + 1 if turns else 1), uuid.uuid4().hex, previous)
        try:
            file = open(owner.path, "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            return None
        with file:
            json.dump({**_this_process(), "since": _now(), "token": owner.token}, file)
        if not owner.holds():  # another process was two turns ahead
            owner.path.unlink(missing_ok=True)
            return None
        return owner

    def _alive(self, path: Path) -> bool:
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return True  # given back at this moment: nothing to take over
        owner = _read(path)
        if owner.get("machine") == _machine():
            return _process_start(owner["pid"]) == owner["started"]
        known, since = self._seen.get(path, (None, 0.0))
        if known != beat:
            self._seen[path] = (beat, time.monotonic())
            return True
        return time.monotonic() - since < self.patience

    def _beat(self, path: Path, done: threading.Event) -> None:
        while not done.wait(self.heartbeat):
            with suppress(OSError):  # a disk that is away for a moment; others are patient
                os.utime(path)


def _path(folder: Path, name: str, turn: int) -> Path:
    return folder / f"{name}.owner-{turn}"


def _turn(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _turns(folder: Path, name: str) -> list[int]:
    """Return the numbers of the owners of a piece of work, ascending."""
    pattern = re.compile(re.escape(name) + r"\.owner-\d+")
    return sorted(_turn(path) for path in folder.iterdir() if pattern.fullmatch(path.name))


def _read(path: Path) -> dict[str, Any]:
    """Return what an owner's file says; nothing where it is gone or still being written."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}" if owner else ""


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _process_start(pid)}


def _machine() -> str:
    """Return what is the same for two processes only if each sees the other's process number."""
    boot = namespace = ""
    with suppress(OSError):  # no Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


def _process_start(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None where it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # of another user, and alive
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return None if state in "ZX" else fields[18]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
