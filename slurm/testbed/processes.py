"""The processes of a testbed: its daemons, noted in a file, and what runs on its nodes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Daemons:
    """The daemons of one folder. ``processes.json`` holds their names and process ids."""

    folder: Path

    def spawn(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        """Start a daemon in a process group of its own and note its id at once; it writes ``name.log``."""
        with open(self.log(name), "ab") as log:
            daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")} | environment,
            )
        self._file.write_text(json.dumps(self.noted() | {name: daemon.pid}))
        while daemon.poll() is None and not self._is_ours(daemon.pid):
            time.sleep(0.001)  # for a moment a new program has no environment to be known by

    def noted(self) -> dict[str, int]:
        """Names and ids of those that were started since :meth:`forget`, each in its last life."""
        if not self._file.exists():
            return {}
        processes: dict[str, int] = json.loads(self._file.read_text())
        return processes

    def running(self) -> dict[str, int]:
        """Names and ids of those that still run."""
        return {name: pid for name, pid in self.noted().items() if self._is_ours(pid)}

    def end(self, names: Collection[str], seconds: float = 10) -> None:
        """Terminate daemons and wait for them; kill those that still run after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (pids := self._still(names)) and time.monotonic() < deadline:
            self._signal(pids, signal.SIGTERM)
            time.sleep(0.1)
        self.kill(names)

    def kill(self, names: Collection[str]) -> None:
        """Kill daemons and wait until they are gone."""
        while pids := self._still(names):
            self._signal(pids, signal.SIGKILL)
            time.sleep(0.02)

    def log(self, name: str) -> Path:
        """The log of a daemon."""
        return self.folder / f"{name}.log"

    def forget(self) -> None:
        """Remove ``processes.json``."""
        self._file.unlink(missing_ok=True)

    def _still(self, names: Collection[str]) -> list[int]:
        return [pid for name, pid in self.running().items() if name in names]

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def _is_ours(self, pid: int) -> bool:
        """Whether it runs and was started for this folder: ids are used again, by strangers too."""
        try:
            return _for_cluster(self.folder / "slurm.conf") in _environment(pid)
        except OSError:
            return False

    @property
    def _file(self) -> Path:
        return self.folder / "processes.json"


def kill_node_processes(conf: Path, nodes: Collection[str]) -> None:
    """Kill all that runs on the nodes of the cluster ``conf``: job steps, their processes, and slurmd.

    All nodes share this machine, so a process is known by its environment, or by an ancestor's.
    """
    # As if all went at once: each is stopped first, then killed before its parent, as the kernel wakes stopped
    # children of a dead parent. A srun that sees another one die has Slurm kill its job step; Slurm does so
    # when the node is back, even if the step is then that of the job's next period.
    stopped: set[int] = set()
    while new := set(_on_nodes(conf, nodes)) - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    while pids := _on_nodes(conf, nodes):
        _signal(pids, signal.SIGKILL)
        time.sleep(0.02)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _on_nodes(conf: Path, nodes: Collection[str]) -> list[int]:
    """Process ids, children before their parents."""
    cluster = _for_cluster(conf)
    places = [f"SLURMD_NODENAME={node}".encode() for node in nodes]
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = _environment(int(entry.name))
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state in "ZX":
            continue
        parents[int(entry.name)] = int(parent)
        if cluster in environment and any(place in environment for place in places):
            found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    found.discard(os.getpid())

    def depth(pid: int) -> int:
        return 1 + depth(parents[pid]) if parents[pid] in found else 0

    return sorted(found, key=depth, reverse=True)


def _for_cluster(conf: Path) -> bytes:
    """What each process of the cluster has in its environment."""
    return f"SLURM_CONF={conf}".encode()


def _environment(pid: int) -> list[bytes]:
    """The environment in which a process was started; empty when it has ended and nobody has noticed.

    Raises:
        OSError: when there is no such process, or it belongs to somebody else.
    """
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
