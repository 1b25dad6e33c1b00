"""Checks of SLURM against a cluster file: settings, partition, nodes, and what sbatch says."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from slurm.cluster import Cluster
from slurm.doctor.findings import Finding, Result, check, fail, first_line, gib, ok, run, skip, warn

Record = Mapping[str, str]
NOTICE = "preempt_send_user_signal"
UNUSABLE = ("DOWN", "DRAIN", "FAIL", "NOT_RESPONDING", "MAINT")
"""How parts of a node's state begin that keep jobs away; POWERED_DOWN is no such: SLURM wakes it."""
SIGNAL_S = 30
"""Seconds that a checkpoint is given at least."""


@dataclass(frozen=True)
class Slurm:
    """What scontrol shows of a cluster."""

    config: Record
    asked: float
    """This machine's time at which ``config`` was asked for, and..."""
    answered: float
    """...at which it had come, seconds."""
    partitions: Sequence[Record]
    nodes: Sequence[Record]

    @classmethod
    def ask(cls) -> Slurm:
        """Ask the controller."""
        asked = time.time()
        config = run("scontrol", "show", "config").stdout
        return cls(
            parse_config(config),
            asked,
            time.time(),
            parse_records(run("scontrol", "show", "partition", "--oneliner", "--all").stdout),
            parse_records(run("scontrol", "show", "node", "--oneliner").stdout),
        )

    def partition(self, name: str | None) -> Record | None:
        """The partition called ``name``, or the default one."""
        for record in self.partitions:
            if record.get("PartitionName") == name or (name is None and record.get("Default") == "YES"):
                return record
        return None

    def nodes_of(self, partition: Record) -> list[Record]:
        """The nodes of a partition."""
        name = partition["PartitionName"]
        return [node for node in self.nodes if name in node.get("Partitions", "").split(",")]


def examine(cluster: Cluster) -> tuple[list[Finding], Slurm | None]:
    """All checks of SLURM; the second is None when it cannot be asked."""
    programs = controller(cluster)
    if programs.verdict != "ok" or cluster.executor == "local":
        return [programs], None
    try:
        slurm = Slurm.ask()
    except (OSError, subprocess.SubprocessError) as error:
        return [
            programs,
            Finding("scontrol show", "FAIL", first_line(error), "ask again when SLURM is less busy"),
        ], None
    findings = [
        programs,
        clock(slurm),
        preemption(slurm, cluster),
        requeue(slurm),
        accounting(slurm, cluster),
    ]
    where = partition(slurm, cluster)
    findings.append(where)
    if (chosen := slurm.partition(cluster.partition)) is not None:
        findings += [time_limit(chosen, cluster), nodes(slurm.nodes_of(chosen), cluster)]
    return [*findings, submission(cluster)], slurm


# --- checks --------------------------------------------------------------------------------------------------


@check("slurm")
def controller(cluster: Cluster) -> Result:
    """The programs are there and the controller answers."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "squeue") if shutil.which(name) is None]
    if missing:
        return skip(
            f"{', '.join(missing)} not found",
            "--local runs here; on a cluster: a login node, or module load slurm",
        )
    ping = run("scontrol", "ping")
    lines = (ping.stdout or ping.stderr).strip().splitlines() or ["silent"]
    said = next((line for line in lines if line.startswith("Slurmctld")), lines[-1])
    if ping.returncode and cluster.executor == "local" and "Slurmctld" not in said:
        return skip(f"SLURM is installed, but belongs to no cluster ({said})", "--local runs here")
    if ping.returncode:
        return fail(said, "ask the administrator why the controller does not answer")
    return ok(f"{run('scontrol', '--version').stdout.strip()}; {said}")


@check("controller clock")
def clock(slurm: Slurm, most: float = 5) -> Result:
    """The controller's clock against this machine's."""
    theirs = slurm.config["as of"]
    # Whole seconds, cut off.
    off = datetime.fromisoformat(theirs).timestamp() - slurm.answered
    off = off if off > 0 else min(0.0, off + 1 + slurm.answered - slurm.asked)
    if abs(off) <= most:
        return ok(f"{theirs}, within {most:.0f} s of this machine's")
    return warn(
        f"{theirs}, {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's; munge refuses 300 s",
        "administrator: run chronyd or ntpd on both",
    )


@check("preemption")
def preemption(slurm: Slurm, cluster: Cluster) -> Result:
    """A job that has to make room is told so, early enough for a checkpoint."""
    kind, mode = slurm.config.get("PreemptType", "preempt/none"), slurm.config.get("PreemptMode", "OFF")
    told = NOTICE in slurm.config.get("SlurmctldParameters", "")
    notice = f"{NOTICE} is {'set' if told else 'not set'}"
    record = slurm.partition(cluster.partition) or {}
    by_partition = (
        kind == "preempt/partition_prio"
    )  # else by QOS, which has a mode and a GraceTime of its own
    mode = record.get("PreemptMode", mode) if by_partition else mode
    if kind == "preempt/none" or mode == "OFF":
        return ok(f"off, jobs are not preempted; {notice}")
    grace = int(record.get("GraceTime", "0"))
    lasts = f"GraceTime={grace} s" if by_partition else "GraceTime: sacctmgr show qos format=name,gracetime"
    found = f"{kind}, {mode}, {lasts}; {notice}"
    mends = []
    if not told:
        mends.append(f"SlurmctldParameters={NOTICE} in slurm.conf")
    if by_partition and grace < SIGNAL_S:
        mends.append(f"GraceTime=120 for partition {record.get('PartitionName', '')}")
    if not mends:
        return ok(found)
    return warn(
        f"{found}: a preempted job loses the work since its last checkpoint",
        f"administrator: {' and '.join(mends)}, scontrol reconfigure; until then a smaller checkpoint.every_steps",
    )


@check("requeue")
def requeue(slurm: Slurm) -> Result:
    """A job may be queued again, which is how it goes on after a preemption or its time limit."""
    # Jobs are submitted with --requeue, so that JobRequeue=0 does not keep them from it.
    return ok(
        f"JobRequeue={slurm.config.get('JobRequeue', '?')}, KillWait={slurm.config.get('KillWait', '?')}"
    )


@check("accounting")
def accounting(slurm: Slurm, cluster: Cluster) -> Result:
    """Whether SLURM keeps a history, and wants an account."""
    kind = slurm.config.get("AccountingStorageType", "(null)")
    if kind in ("(null)", "accounting_storage/none"):
        return ok("off: sacct is empty, facerep does without")
    enforced = slurm.config.get("AccountingStorageEnforce", "none")
    charged = cluster.account or "your default account"
    return ok(
        f"{kind.rpartition('/')[2]}, enforced: {enforced}; {charged} is charged (sacctmgr show assoc user=$USER)"
    )


@check("partition")
def partition(slurm: Slurm, cluster: Cluster) -> Result:
    """The partition is there and takes jobs."""
    record = slurm.partition(cluster.partition)
    names = ", ".join(other["PartitionName"] for other in slurm.partitions)
    if record is None:
        wanted = (
            f"there is no partition {cluster.partition}"
            if cluster.partition
            else "SLURM has no default partition"
        )
        return fail(wanted, f"in the cluster file: partition: one of {names}")
    if record.get("State") != "UP":
        return fail(
            f"{record['PartitionName']} is {record.get('State')}", f"wait, or take another one of {names}"
        )
    most = record.get("MaxNodes", "UNLIMITED")
    if most.isdigit() and int(most) < cluster.nodes:
        return fail(
            f"{record['PartitionName']} gives a job at most {most} nodes",
            f"in the cluster file: nodes: {most}",
        )
    return ok(f"{record['PartitionName']}, {record.get('TotalNodes', '?')} nodes")


@check("time limit")
def time_limit(partition: Record, cluster: Cluster) -> Result:
    """``minutes`` is allowed, and the notice before its end leaves time to work."""
    most = minutes(partition.get("MaxTime", "UNLIMITED"))
    if cluster.minutes > most:
        return fail(
            f"minutes: {cluster.minutes}, the partition allows {most:.0f}",
            f"in the cluster file: minutes: {most:.0f}; a longer run goes on in the next period by itself",
        )
    if cluster.signal_delay_s * 2 > cluster.minutes * 60:
        return warn(
            f"signal_delay_s: {cluster.signal_delay_s} is most of {cluster.minutes} minutes",
            f"in the cluster file: signal_delay_s: {cluster.minutes * 6}",
        )
    allowed = "no limit" if math.isinf(most) else f"at most {most:.0f}"
    return ok(f"{cluster.minutes} minutes ({allowed}), notice {cluster.signal_delay_s} s before")


@check("nodes")
def nodes(nodes: Sequence[Record], cluster: Cluster) -> Result:
    """Enough nodes have what the cluster file asks for."""
    needs = _needs(cluster)
    if not nodes:
        return fail("the partition has no nodes", "in the cluster file: another partition")
    wanted = (
        ", ".join(f"{_amount(name, value)} {name}" for name, (value, _) in needs.items() if value)
        or "anything"
    )
    fitting = [node for node in nodes if all(has(node) >= value for value, has in needs.values())]
    found = f"{len(fitting)} of {len(nodes)} have {wanted}; {cluster.nodes} asked for"
    if len(fitting) < cluster.nodes:
        best = {name: max(has(node) for node in nodes) for name, (_, has) in needs.items()}
        largest = ", ".join(f"{_amount(name, value)} {name}" for name, value in best.items())
        less = f"nodes: {len(fitting)}, or " if fitting else ""
        return fail(found, f"in the cluster file: {less}ask for less of each; a node has at most {largest}")
    up = [
        node for node in fitting if not any(s.startswith(UNUSABLE) for s in node.get("State", "").split("+"))
    ]
    if len(up) < cluster.nodes:
        return warn(
            f"{found}, but only {len(up)} are up",
            f"the job will wait; nodes: {max(1, len(up))} could start, sinfo -R says why",
        )
    return ok(found)


@check("sbatch")
def submission(cluster: Cluster) -> Result:
    """What SLURM itself says to such a job; nothing is queued."""
    c = cluster
    asked = {
        "partition": c.partition, "account": c.account, "constraint": c.constraint, "nodes": c.nodes,
        "ntasks-per-node": c.tasks, "gpus-per-node": c.gpus_per_node or None, "cpus-per-task": c.cpus_per_task,
        "mem": c.memory, "time": c.minutes,
    }  # fmt: skip
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    said = run("sbatch", "--test-only", *options, "--wrap=true")
    answer = " ".join((said.stderr or said.stdout).split()).removeprefix("sbatch: ")
    if said.returncode:
        return fail(f"refuses: {answer}", f"mend the cluster file; asked for: {' '.join(options)}")
    return ok(re.sub(r"Job \d+", "such a job", answer))


# --- what a node has -----------------------------------------------------------------------------------------


def _needs(cluster: Cluster) -> dict[str, tuple[float, Callable[[Record], float]]]:
    """What each node must have, and how to read it off its record."""
    return {
        "GPUs": (cluster.gpus_per_node or 0, gpus_of),
        "CPUs": (cluster.tasks * (cluster.cpus_per_task or 1), cpus_of),
        "of memory": (memory_bytes(cluster.memory or "0"), memory_of),
    }


def _amount(name: str, value: float) -> str:
    return gib(value) if name == "of memory" else f"{value:.0f}"


def gpus_of(node: Record) -> int:
    """The GPUs of a node, of every type: ``Gres=gpu:a100:4(S:0-1),gpu:h100:2`` has 6."""
    counts = re.findall(r"\bgpu(?::[^:,()]+)??(?::(\d+))?(?=[,(]|$)", node.get("Gres", ""))
    return sum(int(count or 1) for count in counts)


def cpus_of(node: Record) -> int:
    """The CPUs that jobs may have."""
    return int(node.get("CPUEfctv") or node.get("CPUTot", "0"))


def memory_of(node: Record) -> int:
    """The node's memory, bytes."""
    return int(node.get("RealMemory", "0")) * 2**20


def memory_bytes(text: str) -> int:
    """SLURM's ``512GB``, ``100000`` (MB) in bytes; '0', all of the node, is 0."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text)
    if not found:
        raise ValueError(f"'{text}' is no size")
    powers = {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}
    return int(found[1]) << powers[found[2]]


# --- reading scontrol ----------------------------------------------------------------------------------------


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config``: its names and values, and under "as of" the controller's time."""
    config = {}
    for line in text.splitlines():
        if line.startswith("Configuration data as of "):
            config["as of"] = line.split()[-1]
        name, equals, value = line.partition(" = ")
        if equals:
            config[name.strip()] = value.strip()
    return config


def parse_records(text: str) -> list[dict[str, str]]:
    """``scontrol show node|partition --oneliner``: a mapping a line. Values may hold spaces."""
    return [
        dict(re.findall(r"([A-Za-z]\w*)=(.*?)(?=\s+[A-Za-z]\w*=|\s*$)", line))
        for line in text.splitlines()
        if "=" in line
    ]


def minutes(text: str) -> float:
    """``1-12:00:00`` in minutes; UNLIMITED is infinite."""
    if text in ("UNLIMITED", "INFINITE", "NONE"):
        return math.inf
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60
