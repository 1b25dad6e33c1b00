from __future__ import annotations

import configparser
import dataclasses
import io
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.beton import write_beton
from slurm.cluster import Cluster
from slurm.doctor import Finding, examine, machine, main, ring, scheduler, storage
from slurm.doctor.findings import Result, check
from slurm.doctor.scheduler import Slurm, parse_config, parse_records
from slurm.testbed import Testbed

ROOT = Path(__file__).parents[2]
GIB = 2**30


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# --- the command ---------------------------------------------------------------------------------------------


def test_the_whole_command_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    code = main(["--run", str(tmp_path / "not" / "there"), "--cluster", "configs/cluster/local.yaml"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(re.match(r"(ok  |warn|FAIL|skip)  \S", line) for line in lines)
    assert all(" -> " in line for line in lines if line.startswith(("warn", "FAIL")))
    counts = {verdict: int(count) for count, verdict in re.findall(r"(\d+) (\w+)", last)}
    assert sum(counts.values()) == len(lines) > 15
    assert code == (1 if counts["FAIL"] else 0)
    verdicts = {line[6:22].strip(): line[:4].strip() for line in lines}
    assert verdicts["torch works"] == verdicts["ffcv"] == verdicts["flock"] == verdicts["port"] == "ok"
    assert "ok" in (verdicts["nccl"], verdicts.get("gloo")), "real processes added up their ones"
    assert not list(tmp_path.iterdir()), "its temporaries are gone"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "python -m slurm doctor" in said
    assert "slurm.doctor.ring" in said
    assert "exit codes" in said


def test_a_wrong_cluster_file_is_a_finding_and_the_rest_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("nodse: 2\n")
    first, second = (
        finding for finding, _ in zip(examine(str(path), None, tmp_path), range(2), strict=False)
    )
    assert (first.name, first.verdict) == ("cluster file", "FAIL")
    assert "nodes" in first.found, "the nearest name"
    assert second.name == "python"


def test_a_check_that_crashes_fails_in_one_line() -> None:
    @check("ill")
    def ill() -> Result:
        raise RuntimeError("first\nsecond")

    finding = ill()
    assert (finding.verdict, finding.found) == ("FAIL", "RuntimeError: first")
    assert "\n" not in str(finding)
    assert finding.mend


# --- the machine ---------------------------------------------------------------------------------------------


def test_required_versions_are_those_of_setup_cfg() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    wanted = parser["options"]["install_requires"]
    for name, least in machine.REQUIRED.items():
        assert re.search(rf"^{name}>={re.escape(least)}\b", wanted, re.MULTILINE), name
    low, high = (".".join(map(str, version)) for version in machine.PYTHON)
    assert parser["options"]["python_requires"] == f">={low},<{high}"


def test_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.REQUIRED, "torch", "99.1")
    monkeypatch.setitem(machine.REQUIRED, "no-such-package", "1")
    assert machine.package("torch").verdict == "FAIL"
    assert "pip install 'torch>=99.1'" in machine.package("torch").mend
    assert machine.package("no-such-package").found == "not installed"
    assert machine.numbers("2.15.0+cu132") == (2, 15, 0) > machine.numbers("2.9")


def test_without_ffcv_the_mend_says_how_and_that_pillow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv.libffcv", None)
    finding = machine.ffcv()
    assert finding.verdict == "warn"
    assert "libturbojpeg0-dev" in finding.mend
    assert "conda-forge" in finding.mend
    assert "data.decoder=pillow" in finding.mend


def test_a_container_in_which_python_starts() -> None:
    finding = machine.container(["env", f"PATH={Path(sys.executable).parent}"])
    assert (finding.verdict, finding.found) == ("ok", finding.found)


@pytest.mark.parametrize(
    ("words", "found"), [(["false"], "does not start in it"), (["no-such"], "not found")]
)
def test_a_container_in_which_it_does_not(words: list[str], found: str) -> None:
    finding = machine.container(words)
    assert finding.verdict == "FAIL"
    assert found in finding.found
    assert finding.mend


def test_limits() -> None:
    assert machine.open_files(least=1).verdict == "ok"
    assert machine.open_files(least=2**40).verdict == "warn"
    assert machine.shared_memory(least=2**60).verdict == "warn"


def test_a_port_is_one_of_those_that_jobs_use() -> None:
    assert 20000 <= machine.free_port() < 60000


# --- processes that meet -------------------------------------------------------------------------------------


def test_processes_that_do_not_meet_are_killed() -> None:
    start = time.monotonic()
    result = machine._ring(2, "", "mend", seconds=0.2)
    assert result.verdict == "FAIL"
    assert "did not meet" in result.found
    assert time.monotonic() - start < 5


def test_a_process_whose_partner_never_comes() -> None:
    address = f"tcp://127.0.0.1:{machine.free_port()}"
    with pytest.raises(RuntimeError):
        ring.measure(0, 2, 0, address, seconds=0.2)


def test_where_processes_meet() -> None:
    of_torchrun = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "23456",
    }
    assert ring.rendezvous(of_torchrun) == (3, 4, 1, "tcp://10.0.0.1:23456")
    of_srun = {"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}
    rank, world, local, address = ring.rendezvous(of_srun | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.2"})
    assert (rank, world, local) == (9, 16, 1)
    assert address.startswith("tcp://10.0.0.2:")
    assert ring.rendezvous({})[:3] == (0, 1, 0)


# --- files ---------------------------------------------------------------------------------------------------


def test_flock_keeps_another_process_out(tmp_path: Path) -> None:
    assert storage.flock(tmp_path).verdict == "ok"


def test_flock_tells_a_lock_that_somebody_else_holds_from_a_free_one(tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / "lock", "w") as lock:
        assert storage._other_process(tmp_path / "lock") == "free"
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert storage._other_process(tmp_path / "lock") == "held"
        assert storage.flock(tmp_path).verdict == "FAIL", "it cannot have the lock for itself"


def test_a_folder_that_cannot_be_written() -> None:
    (finding,) = storage.folder(Path("/proc/runs"), shared=False)
    assert (finding.name, finding.verdict) == ("run folder", "FAIL")
    assert "--run" in finding.mend


MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw,nosuid 0 0
10.0.0.1@o2ib:/big /scratch lustre rw,flock,lazystatfs 0 0
10.0.0.1@o2ib:/old /old lustre rw,localflock 0 0
server:/home /home nfs rw,vers=3,nolock 0 0
server:/data /mnt/my\\040data nfs4 rw,vers=4.2 0 0
autofs /auto autofs rw 0 0
server:/auto /auto nfs4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "shared", "verdict", "found"),
    [
        ("/scratch/me/runs", True, "ok", "lustre, shared with other nodes"),
        ("/old/me", True, "warn", "localflock"),
        ("/home/me", False, "warn", "nolock"),
        ("/mnt/my data/runs", True, "ok", "nfs4"),
        ("/auto", True, "ok", "nfs4"),
        ("/homework", True, "warn", "ext4: other nodes may not see it"),
        ("/homework", False, "ok", "ext4"),
        ("/run/me", False, "warn", "gone with the machine"),
    ],
)
def test_file_systems(path: str, shared: bool, verdict: str, found: str) -> None:
    finding = storage.file_system(Path(path), shared, MOUNTS)
    assert (finding.verdict, finding.found) == (verdict, finding.found)
    assert found in finding.found


def test_file_server_clock(tmp_path: Path) -> None:
    assert storage.file_clock(tmp_path).verdict == "ok"
    for theirs, verdict in ((99.0, "ok"), (101.5, "ok"), (90.0, "warn"), (110.0, "warn")):
        assert storage._skew(theirs, 100.0, 101.0, "theirs", most=2).verdict == verdict
    assert "10 s behind" in storage._skew(90.0, 100.0, 101.0, "theirs", most=2).found


def test_free_space(tmp_path: Path) -> None:
    assert storage.space(tmp_path, least=1, wanted=2).verdict == "ok"
    assert storage.space(tmp_path, least=1, wanted=2**60).verdict == "warn"
    assert storage.space(tmp_path, least=2**60).verdict == "FAIL"


@pytest.mark.parametrize(("size", "verdict"), [(68 * GIB, "ok"), (68 * GIB + 1, "warn")])
def test_page_cache_counts_what_the_processes_need(size: int, verdict: str) -> None:
    finding = storage.page_cache(size, memory=100 * GIB, processes=8, whose="a node")
    assert finding.verdict == verdict
    assert "100.0 GiB of a node" in finding.found


def test_memory_of_this_machine_is_that_of_sysconf() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < storage.memory_here() <= total


@pytest.fixture
def beton(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    jpegs = []
    for picture in noise:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG")
        jpegs.append(file.getvalue())
    write_beton(tmp_path / "set.beton", jpegs, range(20), [-1] * 20, image_size=32)
    return tmp_path / "set.beton"


def test_a_whole_beton(beton: Path) -> None:
    finding = storage.beton(beton)
    assert finding.verdict == "ok"
    assert "20 pictures" in finding.found


def test_a_beton_that_was_cut_short(beton: Path) -> None:
    os.truncate(beton, beton.stat().st_size - 5)
    finding = storage.beton(beton)
    assert finding.verdict == "FAIL"
    assert str(beton) in finding.found
    assert "not whole" in finding.found


def test_a_beton_whose_pictures_were_lost(beton: Path) -> None:
    with open(beton, "r+b") as file:
        file.seek(storage.Beton(beton)._starts[3])
        file.write(bytes(1000))
    finding = storage.beton(beton)
    assert finding.verdict == "FAIL"
    assert f"{beton}: row 3" in finding.found


def test_a_beton_with_the_manifest_of_another(beton: Path) -> None:
    manifest = beton.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"count": 20', '"count": 21'))
    assert "20 rows, its manifest says 21" in storage.beton(beton).found
    manifest.unlink()
    assert "no such file" in storage.beton(beton).found


# --- what scontrol prints ------------------------------------------------------------------------------------

CONFIG = """\
Configuration data as of 2026-11-22T12:42:02
AccountingStorageEnforce = associations,limits
AccountingStorageType   = accounting_storage/slurmdbd
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = idle_on_node_suspend,preempt_send_user_signal
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at head is UP
"""
PARTITIONS = """\
PartitionName=main AllowAccounts=ALL Default=YES GraceTime=120 MaxNodes=UNLIMITED MaxTime=2-00:00:00 Nodes=n[0-3] \
PreemptMode=REQUEUE State=UP TotalCPUs=512 TotalNodes=4 TRES=cpu=512,mem=4T,node=4
PartitionName=short Default=NO GraceTime=0 MaxNodes=1 MaxTime=00:30:00 Nodes=n3 State=DOWN TotalNodes=1
"""
NODES = """\
NodeName=n0 CPUEfctv=126 CPUTot=128 Gres=gpu:a100:8(S:0-1) OS=Linux 6.1.0 #1 SMP Debian 6.1 (2024-02-01)  \
RealMemory=1000000 State=MIXED Partitions=main
NodeName=n1 CPUTot=128 Gres=gpu:a100:8 RealMemory=1000000 State=IDLE+CLOUD+POWERED_DOWN Partitions=main
NodeName=n2 CPUTot=128 Gres=gpu:8 RealMemory=1000000 State=IDLE+DRAIN Partitions=main Reason=fan broken [me@2026]
NodeName=n3 CPUTot=64 Gres=gpu:v100:4 RealMemory=500000 State=IDLE Partitions=main,short
"""


@pytest.fixture
def slurm() -> Slurm:
    now = time.mktime((2026, 11, 22, 12, 42, 2, 0, 0, -1))
    return Slurm(parse_config(CONFIG), now, now + 1, parse_records(PARTITIONS), parse_records(NODES))


def _with(slurm: Slurm, **values: str) -> Slurm:
    return dataclasses.replace(slurm, config={**slurm.config, **values})


def test_scontrol_is_read(slurm: Slurm) -> None:
    assert slurm.config["KillWait"] == "30 sec"
    assert slurm.config["as of"] == "2026-11-22T12:42:02"
    default, short = slurm.partition(None), slurm.partition("short")
    assert default is not None
    assert short is not None
    assert default["TRES"] == "cpu=512,mem=4T,node=4"
    assert [node["NodeName"] for node in slurm.nodes_of(short)] == ["n3"]
    assert slurm.nodes[0]["OS"] == "Linux 6.1.0 #1 SMP Debian 6.1 (2024-02-01)"
    assert scheduler.cpus_of(slurm.nodes[0]) == 126
    assert slurm.nodes[2]["Reason"] == "fan broken [me@2026]"
    assert slurm.partition("nowhere") is None


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu:8", 8),
        ("gpu:a100:4(S:0-1),gpu:h100:2", 6),
        ("gpu:a100_1g.5gb:7(S:0,2)", 7),
        ("gpu:a100", 1),
        ("gpu", 1),
        ("mps:100,gpu:2", 2),
        ("(null)", 0),
        ("", 0),
    ],
)
def test_gpus_of_a_node(gres: str, count: int) -> None:
    assert scheduler.gpus_of({"Gres": gres}) == count


def test_times_and_sizes() -> None:
    assert scheduler.minutes("2-01:30:30") == 49 * 60 + 30.5
    assert scheduler.minutes("00:30:00") == 30
    assert scheduler.minutes("UNLIMITED") == math.inf
    assert scheduler.memory_bytes("512GB") == 512 * GIB
    assert scheduler.memory_bytes("1024") == GIB
    assert scheduler.memory_bytes("2T") == 2048 * GIB
    assert scheduler.memory_bytes("0") == 0


def test_controller_clock(slurm: Slurm) -> None:
    assert scheduler.clock(slurm).verdict == "ok"
    slow = dataclasses.replace(slurm, asked=slurm.asked + 100, answered=slurm.answered + 100)
    assert scheduler.clock(slow).verdict == "warn"
    assert "100 s behind" in scheduler.clock(slow).found or "99 s behind" in scheduler.clock(slow).found


def test_preemption_with_and_without_notice(slurm: Slurm) -> None:
    here, short = Cluster(), Cluster(partition="short")
    assert scheduler.preemption(slurm, here).verdict == "ok"
    silent = scheduler.preemption(_with(slurm, SlurmctldParameters="(null)"), here)
    assert silent.verdict == "warn"
    assert "last checkpoint" in silent.found
    assert "SlurmctldParameters=preempt_send_user_signal" in silent.mend
    assert "GraceTime=120 for partition short" in scheduler.preemption(slurm, short).mend
    by_qos = _with(slurm, PreemptType="preempt/qos")
    assert "sacctmgr show qos" in scheduler.preemption(by_qos, short).found
    assert scheduler.preemption(by_qos, short).verdict == "ok"
    off = _with(slurm, PreemptType="preempt/none", SlurmctldParameters="(null)")
    assert scheduler.preemption(off, here).verdict == "ok"


def test_partitions(slurm: Slurm) -> None:
    assert scheduler.partition(slurm, Cluster()).verdict == "ok"
    unknown = scheduler.partition(slurm, Cluster(partition="gpu"))
    assert unknown.verdict == "FAIL"
    assert "main, short" in unknown.mend
    assert "short is DOWN" in scheduler.partition(slurm, Cluster(partition="short")).found


def test_time_limits(slurm: Slurm) -> None:
    main_partition, short = slurm.partitions
    assert scheduler.time_limit(main_partition, Cluster()).verdict == "ok"
    assert "minutes: 30" in scheduler.time_limit(short, Cluster()).mend
    brief = Cluster(minutes=11, signal_delay_s=500, allow_short=True)
    assert "signal_delay_s: 66" in scheduler.time_limit(short, brief).mend


@pytest.mark.parametrize(
    ("asked", "verdict", "says"),
    [
        ({"nodes": 2, "gpus_per_node": 8, "cpus_per_task": 15, "memory": "900GB"}, "ok", "3 of 4"),
        ({"nodes": 3, "gpus_per_node": 8}, "warn", "only 2 are up"),
        ({"nodes": 4, "gpus_per_node": 8}, "FAIL", "nodes: 3, or ask for less"),
        ({"gpus_per_node": 16}, "FAIL", "at most 8 GPUs, 128 CPUs"),
        ({"gpus_per_node": 8, "cpus_per_task": 17}, "FAIL", "8 GPUs, 136 CPUs"),
        ({"memory": "2T"}, "FAIL", "2048.0 GiB of memory"),
        ({"memory": "0", "nodes": 4}, "warn", "sinfo -R"),
    ],
)
def test_nodes(slurm: Slurm, asked: dict[str, object], verdict: str, says: str) -> None:
    finding = scheduler.nodes(slurm.nodes_of(slurm.partitions[0]), Cluster.model_validate(asked))
    assert finding.verdict == verdict
    assert says in str(finding)


# --- a real Slurm --------------------------------------------------------------------------------------------

FITS = {"nodes": 2, "gpus_per_node": 2, "cpus_per_task": 1, "memory": "1GB"}


def _ask(**asked: object) -> dict[str, Finding]:
    return _by_name(scheduler.examine(Cluster.model_validate({**FITS, **asked}))[0])


@pytest.mark.slurm
@pytest.mark.slow
def test_a_cluster_file_that_fits(on_testbed: Testbed) -> None:
    findings = _ask()
    assert {finding.verdict for finding in findings.values()} == {"ok"}
    assert "such a job to start" in findings["sbatch"].found
    assert on_testbed.run("squeue", "--noheader") == "", "nothing was queued"


@pytest.mark.slurm
@pytest.mark.slow
def test_a_wrong_partition(on_testbed: Testbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("{partition: gpu, nodes: 2}")
    assert main(["--cluster", str(tmp_path / "mine.yaml"), "--run", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    (said,) = (line for line in lines if line.startswith("FAIL  partition"))
    assert "there is no partition gpu -> in the cluster file: partition: one of main" in said
    assert any(line.startswith("FAIL  sbatch") and "invalid partition" in line for line in lines)


@pytest.mark.slurm
@pytest.mark.slow
def test_too_many_gpus(on_testbed: Testbed) -> None:
    findings = _ask(gpus_per_node=9)
    assert findings["nodes"].verdict == "FAIL"
    assert "a node has at most 8 GPUs" in findings["nodes"].mend
    assert findings["sbatch"].verdict == "FAIL"


@pytest.mark.slurm
@pytest.mark.slow
def test_preemption_without_notice(on_testbed: Testbed) -> None:
    assert _ask()["preemption"].verdict == "ok"
    scavenge = _ask(partition="scavenge")["preemption"]
    assert scavenge.verdict == "warn"
    assert "GraceTime=120 for partition scavenge" in scavenge.mend
    assert "not preempted" in _ask(partition="urgent")["preemption"].found
    text = on_testbed.conf.read_text()
    changed = text.replace("SlurmctldParameters=preempt_send_user_signal\n", "")
    assert changed != text
    try:
        on_testbed.conf.write_text(changed)
        on_testbed.run("scontrol", "reconfigure")
        silent = _ask()["preemption"]
    finally:
        on_testbed.conf.write_text(text)
        on_testbed.run("scontrol", "reconfigure")
    assert silent.verdict == "warn"
    assert "SlurmctldParameters=preempt_send_user_signal" in silent.mend


@pytest.mark.slurm
@pytest.mark.slow
def test_a_controller_that_is_gone(
    on_testbed: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", on_testbed.conf.read_text()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    (finding,) = _ask().values()
    assert (finding.name, finding.verdict) == ("slurm", "FAIL")
    assert "DOWN" in finding.found


@pytest.mark.slurm
@pytest.mark.slow
def test_processes_of_two_nodes_meet(on_testbed: Testbed, tmp_path: Path) -> None:
    output = tmp_path / "ring"
    wrapped = f"srun {sys.executable} -m slurm.doctor.ring"
    command = ["sbatch", "--nodes=2", "--ntasks-per-node=2", f"--output={output}", f"--wrap={wrapped}"]
    subprocess.run(command, cwd=ROOT, check=True)
    deadline = time.monotonic() + 120
    while not (output.exists() and output.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert "4 processes agree over gloo" in output.read_text()
