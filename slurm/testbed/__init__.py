"""A real Slurm on one machine, for tests and for trying things out: munged, slurmctld and several slurmd.

Everything lives in one folder and on free ports; a Slurm that the system runs is neither used nor touched.
The nodes share the machine, and their GPUs are device nodes that do nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PACKAGES = "slurm-wlm munge"


class TestbedError(RuntimeError):
    """The testbed could not start; the message says why."""

    __test__ = False  # not a test, whatever its name


@dataclass(frozen=True)
class Testbed:
    """A Slurm cluster in ``folder``, which must be on a short path: Unix socket names end at 107 bytes."""

    __test__ = False

    folder: Path
    nodes: int = 2
    cpus: int = 8
    gpus: int = 8

    def start(self) -> None:
        """Start the daemons and wait until every node is idle (half a second).

        Raises:
            TestbedError: with the reason and the end of the daemon's log.
        """
        if missing := missing_programs():
            raise TestbedError(f"{', '.join(missing)} not found; install them: apt-get install {PACKAGES}")
        if os.geteuid():
            raise TestbedError(
                "only root may start it: the fake GPUs are device nodes, and slurmd changes users"
            )
        if self._running():
            raise TestbedError(f"one runs in {self.folder} already; stop it first")
        self._write_files()
        try:
            self._spawn("munged", ["munged", "--foreground", "--force", *self._munge_options()])
            self._wait("munged", self._munge_socket.exists)
            self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
            self._wait("slurmctld", lambda: self._answers("scontrol", "ping"))
            for i in range(self.nodes):
                self._spawn(f"n{i}", ["slurmd", "-D", "-N", f"n{i}", "-f", str(self.conf)])
            self._wait(
                "n0", lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(self.nodes)
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel the jobs, end the daemons that :meth:`start` started, and nothing else."""
        if self._answers("scontrol", "ping"):
            self.run("scancel", "--user=root")
            self._settled()
        deadline = time.monotonic() + 10
        while (running := self._running()) and time.monotonic() < deadline:
            for pid in running:
                os.killpg(pid, signal.SIGTERM)
            time.sleep(0.2)
        for pid in self._running():
            os.killpg(pid, signal.SIGKILL)
        self._pids.unlink(missing_ok=True)

    @property
    def conf(self) -> Path:
        """The slurm.conf: with ``SLURM_CONF`` set to it every Slurm command talks to this cluster."""
        return self.folder / "slurm.conf"

    def run(self, *command: str) -> str:
        """The stdout of a Slurm command on this cluster.

        Raises:
            subprocess.CalledProcessError: when the command failed.
        """
        environment = os.environ | {"SLURM_CONF": str(self.conf)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    # --- files -----------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for i in range(self.gpus):
            device = self.folder / f"gpu{i}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))  # /dev/null under another name
        host = socket.gethostname().partition(".")[0]
        control, *ports = _free_ports(self.nodes + 1)
        nodes = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory=8000 Gres=gpu:{self.gpus}"
            for i, port in enumerate(ports)
        )
        values = {"host": host, "control": control, "folder": self.folder, "nodes": nodes}
        self.conf.write_text(_SLURM_CONF.format(munge=self._munge_socket, **values))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")

    @property
    def _munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _munge_options(self) -> list[str]:
        folder = self.folder / "munge"
        files = {
            "key-file": "key",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
            "socket": "socket",
        }
        return [f"--{option}={folder / name}" for option, name in files.items()]

    # --- processes -------------------------------------------------------------------------------------------

    def _spawn(self, name: str, command: list[str]) -> None:
        """Start a daemon in a process group of its own and note its id at once."""
        with open(self.folder / f"{name}.log", "ab") as log:
            daemon = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"SLURM_CONF": str(self.conf)},
            )
        self._pids.write_text(json.dumps(self._processes() | {name: daemon.pid}))

    @property
    def _pids(self) -> Path:
        return self.folder / "processes.json"

    def _processes(self) -> dict[str, int]:
        """Daemon names and process ids; empty when nothing was started."""
        if not self._pids.exists():
            return {}
        processes: dict[str, int] = json.loads(self._pids.read_text())
        return processes

    def _running(self) -> list[int]:
        """The daemons that still run; each has the folder in its command line, so no stranger is among them."""
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in self._processes().values()}
        return [
            pid for pid, file in commands.items() if file.exists() and str(self.folder) in file.read_text()
        ]

    def _answers(self, *command: str) -> bool:
        try:
            self.run(*command)
        except subprocess.CalledProcessError:
            return False
        return True

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                end = (self.folder / f"{name}.log").read_text().strip().splitlines()[-5:]
                raise TestbedError(
                    f"{name} is not ready after {seconds:.0f} s; its log ends with:\n" + "\n".join(end)
                )
            time.sleep(0.1)

    def _settled(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while self.run("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.2)


def missing_programs() -> list[str]:
    """The Slurm programs that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range the kernel gives to outgoing connections."""
    free: list[int] = []
    for port in range(17000 + os.getpid() % 2000 * 4, 32000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)):
                free.append(port)
        if len(free) == count:
            break
    return free


_SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={munge}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
KillWait=5
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
