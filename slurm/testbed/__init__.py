"""A real Slurm on one machine, for tests and for trying things out: munged, slurmctld and several slurmd.

Everything lives in one folder and on free ports; a Slurm that the system runs is neither used nor touched.
The nodes share the machine, and their GPUs are device nodes that do nothing.

Three partitions, each over all nodes:

* ``main``, the default. A job in ``urgent`` that needs its place preempts it: it gets the signal it asked for
  (``sbatch --signal``), and after the partition's grace time Slurm ends it and queues it again.
* ``scavenge``, as ``main`` without a grace time: ended and queued again at once, without notice.
* ``urgent``, which preempts the other two and is never preempted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from slurm.testbed.files import write_gpus, write_key, write_slurm_conf
from slurm.testbed.processes import Daemons, kill_node_processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
PACKAGES = "slurm-wlm munge"
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "mariadbd", "mariadb-install-db", "my_print_defaults")
ACCOUNTING_PACKAGES = "slurmdbd mariadb-server-core mariadb-client-core"


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
    grace_s: int = 30
    """Seconds between the notice of a preemption and the end, in partition main."""
    requeue_s: int = 120
    """Seconds that Slurm holds a requeued job; 120 unless a cluster's slurm.conf says otherwise."""
    accounting: bool = False
    """Keep a record of all jobs for sacct: a MariaDB, on a socket in the folder only, and slurmdbd."""

    def start(self) -> None:
        """Start the daemons and wait until every node is idle (half a second; with accounting five).

        The cluster is new: it knows nothing of jobs of an earlier start.

        Raises:
            TestbedError: with the reason and the end of the daemon's log.
        """
        if missing := missing_programs(self.accounting):
            packages = f"{PACKAGES} {ACCOUNTING_PACKAGES}" if self.accounting else PACKAGES
            raise TestbedError(f"{', '.join(missing)} not found; install them: apt-get install {packages}")
        if os.geteuid():
            raise TestbedError(
                "only root may start it: the fake GPUs are device nodes, and slurmd changes users"
            )
        if self._daemons.running():
            raise TestbedError(f"one runs in {self.folder} already; stop it first")
        self._write_files()
        try:
            self._start_munge()
            if self.accounting:
                self._start_database()
            self._start_controller("-c")  # a clean start
            for name in self.node_names:
                self._start_slurmd(name)
            idle = ("sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D")
            self._wait("n0", lambda: self.run(*idle).strip() == str(self.nodes))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel the jobs, end the daemons that :meth:`start` started, and nothing else."""
        servers = {"munged", "mariadbd", "slurmdbd", "slurmctld"}
        nodes = set(self._daemons.noted()) - servers
        if self._answers("scontrol", "ping"):
            for name in nodes - set(self._daemons.running()):
                # Or slurmctld would wait for its word on the end of its jobs.
                self._answers("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=stop")
            self.run("scancel", "--user=root")
            self._settled()
        # Each may have a last word for the next one.
        for names in (nodes | {"slurmctld"}, {"slurmdbd"}, {"munged", "mariadbd"}):
            self._daemons.end(names)
        kill_node_processes(self.conf, nodes)
        self._daemons.forget()

    def kill_node(self, i: int) -> None:
        """A power cut: node ``i`` loses slurmd, its job steps and their processes at once, without a word.

        Slurm finds out after 14 to 22 seconds: it calls the node DOWN and queues its jobs again.
        """
        kill_node_processes(self.conf, [f"n{i}"])

    def start_node(self, i: int) -> None:
        """Bring a killed node back and wait until it can take jobs.

        Raises:
            TestbedError: when it does not come back; with the end of its log.
        """
        name = f"n{i}"
        before = datetime.now().replace(microsecond=0)
        self._start_slurmd(name)
        self._wait(name, lambda: self._is_up(name, before))

    def stop_controller(self, crash: bool = False) -> None:
        """End slurmctld; the jobs run on, and Slurm's commands do not answer.

        Args:
            crash: kill it, which loses what happened in the last few seconds.
        """
        (self._daemons.kill if crash else self._daemons.end)({"slurmctld"})

    def start_controller(self) -> None:
        """Start slurmctld again with the state it saved, and wait until it answers.

        Raises:
            TestbedError: when it does not; with the end of its log.
        """
        self._start_controller()

    def restart_controller(self, crash: bool = False) -> None:
        """:meth:`stop_controller` and :meth:`start_controller`.

        Raises:
            TestbedError: when it does not come back; with the end of its log.
        """
        self.stop_controller(crash)
        self.start_controller()

    @property
    def conf(self) -> Path:
        """The slurm.conf: with ``SLURM_CONF`` set to it every Slurm command talks to this cluster."""
        return self.folder / "slurm.conf"

    @property
    def node_names(self) -> list[str]:
        """``n0``, ``n1``, ..."""
        return [f"n{i}" for i in range(self.nodes)]

    def run(self, *command: str) -> str:
        """The stdout of a Slurm command on this cluster.

        Raises:
            subprocess.CalledProcessError: when the command failed.
        """
        environment = os.environ | {"SLURM_CONF": str(self.conf)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    # --- daemons ---------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_key(self.folder / "munge")
        write_gpus(self.folder, self.gpus)
        write_slurm_conf(
            self.folder,
            self.nodes,
            self.cpus,
            self.gpus,
            grace_s=self.grace_s,
            requeue_s=self.requeue_s,
            accounting=self.accounting,
        )

    @property
    def _daemons(self) -> Daemons:
        return Daemons(self.folder)

    def _spawn(self, name: str, *command: str, **environment: str) -> None:
        self._daemons.spawn(name, list(command), environment)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        socket = folder / "socket"
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._spawn("munged", "munged", "--foreground", "--force", *options, f"--socket={socket}")
        self._wait("munged", socket.exists)

    def _start_controller(self, *options: str) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", *options, "-f", str(self.conf))
        self._wait("slurmctld", lambda: self._answers("scontrol", "ping"))

    def _start_slurmd(self, name: str) -> None:
        # The job steps get slurmd's environment; this says which node they are on.
        self._spawn(name, "slurmd", "-D", "-N", name, "-f", str(self.conf), SLURMD_NODENAME=name)

    def _start_database(self) -> None:
        """MariaDB with a new, empty database, and slurmdbd.

        Raises:
            TestbedError: when one does not start; with the end of its log.
        """
        data, socket = self.folder / "database", self.folder / "database" / "socket"
        shutil.rmtree(data, ignore_errors=True)
        # Nothing here must outlive the machine, and waiting for the disk would take five seconds.
        options = ["--no-defaults", "--user=root", f"--datadir={data}", "--debug-no-sync"]
        options.append("--innodb-log-file-size=8M")
        log = self._daemons.log("mariadb-install-db")
        with open(log, "wb") as output:
            # A root without a password, as only root may enter the folder of the socket.
            command = ["mariadb-install-db", *options, "--skip-test-db"]
            command.append("--auth-root-authentication-method=normal")
            if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
                raise TestbedError(f"mariadb-install-db failed:\n{_end(log)}")
        self._spawn("mariadbd", "mariadbd", *options, "--skip-networking", f"--socket={socket}")
        log = self._daemons.log("mariadbd")
        self._wait("mariadbd", lambda: "ready for connections" in log.read_text())
        # slurmdbd.conf has no word for a socket; the client library has this variable.
        self._spawn("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(socket))
        self._wait("slurmdbd", lambda: self._answers("sacctmgr", "--noheader", "list", "cluster"))

    # --- state -----------------------------------------------------------------------------------------------

    def _is_up(self, node: str, since: datetime) -> bool:
        """Whether slurmctld has heard of this slurmd, and not only of the one before."""
        words = self.run("scontrol", "--oneliner", "show", "node", node).split()
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        with contextlib.suppress(ValueError):
            started = datetime.fromisoformat(fields["SlurmdStartTime"])
            state = fields["State"]
            return started >= since and not any(bad in state for bad in ("DOWN", "NOT_RESPONDING", "*"))
        return False

    def _answers(self, *command: str) -> bool:
        try:
            self.run(*command)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False
        return True

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                end = _end(self._daemons.log(name))
                raise TestbedError(f"{name} is not ready after {seconds:.0f} s; its log ends with:\n{end}")
            time.sleep(0.1)

    def _settled(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while self.run("squeue", "--noheader").strip() and time.monotonic() < deadline:
            time.sleep(0.2)


def missing_programs(accounting: bool = False) -> list[str]:
    """The programs that this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    programs = (*PROGRAMS, *ACCOUNTING_PROGRAMS) if accounting else PROGRAMS
    return [program for program in programs if shutil.which(program, path=path) is None]


def _end(log: Path) -> str:
    return "\n".join(log.read_text().strip().splitlines()[-5:])
