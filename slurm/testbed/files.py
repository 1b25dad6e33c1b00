"""The files of a testbed: slurm.conf and what belongs to it."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path


def write_key(folder: Path) -> None:
    """A new munge key in ``folder``, which is made for it and closed to others."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    key = folder / "key"
    key.unlink(missing_ok=True)
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)


def write_gpus(folder: Path, count: int) -> None:
    """Device nodes that do nothing, and the gres.conf that calls them GPUs."""
    for i in range(count):
        device = folder / f"gpu{i}"
        if not device.exists():
            os.mknod(device, 0o20666, os.makedev(1, 3))  # /dev/null under another name
    gpus = f"Name=gpu File={folder}/gpu[0-{count - 1}]\n" if count else ""
    (folder / "gres.conf").write_text(gpus)


def write_slurm_conf(
    folder: Path, nodes: int, cpus: int, gpus: int, grace_s: int, requeue_s: int, accounting: bool
) -> None:
    """slurm.conf, cgroup.conf and, for accounting, slurmdbd.conf, all on ports that are free now."""
    host = socket.gethostname().partition(".")[0]
    control, database, *ports = free_ports(nodes + 2)
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    lines = [
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=8000{gres}"
        for i, port in enumerate(ports)
    ]
    if accounting:
        lines.append(_ACCOUNTING.format(folder=folder, port=database))
    else:
        lines.append("AccountingStorageType=accounting_storage/none")
    values = {"host": host, "folder": folder, "control": control, "grace": grace_s, "requeue": requeue_s}
    (folder / "slurm.conf").write_text(_SLURM.format(more="\n".join(lines), **values))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    if accounting:
        conf = folder / "slurmdbd.conf"
        conf.touch()
        conf.chmod(0o600)  # slurmdbd does not start otherwise
        conf.write_text(_SLURMDBD.format(host=host, folder=folder, port=database))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range the kernel gives to outgoing connections.

    They start anywhere, as another testbed may be looking for its own at the same time.
    """
    free: list[int] = []
    for port in range(17000 + secrets.randbelow(14000), 32000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", port)):
                free.append(port)
        if len(free) == count:
            break
    return free


_SLURM = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
# a dead node is found out after about the first and twice the second of these
SlurmdTimeout=10
MessageTimeout=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
MinJobAge=7200
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
ReturnToService=2
KillWait=5
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{more}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=scavenge PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
# slurmdbd's clients do not read AuthInfo
AccountingStoragePass={folder}/munge/socket"""

_SLURMDBD = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
