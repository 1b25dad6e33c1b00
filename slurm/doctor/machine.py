"""Checks of the machine this runs on: packages, decoder, GPUs, collectives, limits, names."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.cluster import visible_gpus
from slurm.doctor.findings import Finding, Result, check, fail, first_line, gib, ok, run, skip, warn
from slurm.job import port

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ((3, 10), (3, 13))
"""At least, and less than."""
REQUIRED = {"torch": "2.11", "torchvision": "0.26", "submitit": "1.5.3"}
"""The packages that a launch needs, as in setup.cfg."""
GREY_LEVELS = 12
"""How far a JPEG decoder may be from another one; FFCV's fast transform is up to 5 from Pillow's."""
DEBIAN = "apt-get install build-essential pkg-config libturbojpeg0-dev libopencv-dev"
CONDA = "conda install -c conda-forge compilers pkg-config libjpeg-turbo 'opencv<5'"
INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is written there


@check("python")
def python() -> Result:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return ok(f"{version}, {sys.executable}")
    return fail(version, "make the environment with Python 3.10, 3.11 or 3.12")


def package(name: str) -> Finding:
    """Whether ``name``, a key of :data:`REQUIRED`, is installed and new enough."""

    @check(name)
    def version() -> Result:
        least = REQUIRED[name]
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return fail("not installed", f"pip install '{name}>={least}'")
        if name == "torch" and numbers(found) == (2, 13, 0):
            return fail(
                found,
                "2.13.0 has a build that torchvision cannot be imported with: pip install 'torch!=2.13.0'",
            )
        if numbers(found) < numbers(least):
            return fail(f"{found} is older than {least}", f"pip install '{name}>={least}'")
        return ok(found)

    return version()


def numbers(version: str) -> tuple[int, ...]:
    """``2.15.0+cu132`` as (2, 15, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


@check("torch works")
def torch_works() -> Result:
    """Torch is imported, and torchvision's compiled operations answer."""
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    if kept != [0, 2]:
        return fail(
            f"torchvision.ops.nms kept boxes {kept} instead of [0, 2]",
            "install torch and torchvision again, together",
        )
    return ok(f"built for CUDA {torch.version.cuda or 'none'}; torchvision's operations answer")


@check("ffcv")
def ffcv() -> Result:
    """FFCV's C decoder gives the pixels of Pillow, within a few grey levels."""
    try:
        from ffcv.libffcv import imdecode
    except (ImportError, OSError) as error:
        return warn(f"cannot be imported ({first_line(error)})", _ffcv_mend(str(error)))
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([x * 3, y * 3, 255 - x - y], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=0)
    stored = np.frombuffer(file.getvalue(), np.uint8)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    decoded = np.zeros_like(picture)
    failed = imdecode(stored, decoded, 64, 64, 64, 64, 0, 0, 1, 1, False, False)
    worst = int(np.abs(decoded - expected).max())
    if failed or worst > GREY_LEVELS:
        found = "refuses a good JPEG" if failed else f"decodes a JPEG wrong, by {worst} grey levels"
        return fail(
            found,
            "pip install --force-reinstall --no-cache-dir --no-deps ffcv; until then data.decoder=pillow",
        )
    return ok(f"{importlib.metadata.version('ffcv')} decodes; at most {worst} grey levels from Pillow")


def _ffcv_mend(error: str) -> str:
    without = "or do without: data.decoder=pillow"
    if "cannot open shared object" in error:
        return (
            "a library that FFCV was compiled against is missing on this machine: install the same packages as where "
            f"it was compiled ({DEBIAN}), add its folder to LD_LIBRARY_PATH, or use a container; {without}"
        )
    if "libGL" in error or "cv2" in error:
        return f"pip install --force-reinstall --no-deps opencv-contrib-python-headless; {without}"
    return f"{DEBIAN} (as root) or {CONDA}, then pip install ffcv; {without}"


@check("container")
def container(words: Sequence[str]) -> Result:
    """Python, started behind the cluster file's ``container`` as jobs start it, has the packages."""
    if not words:
        return ok("none")
    if "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ:
        return skip("this is inside of one")
    if shutil.which(words[0]) is None:
        return fail(f"{words[0]} not found", f"module load {words[0]}")
    tried = run(*words, "python", "-c", "import submitit, torch; print(torch.__version__)", timeout=300)
    if tried.returncode == 0:
        return ok(f"torch {tried.stdout.strip()} starts behind {words[0]}")
    said = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return fail(f"python does not start in it: {said}", "try the words by hand, with python after them")


# --- GPUs ----------------------------------------------------------------------------------------------------


@check("gpus")
def gpus() -> Result:
    """Every visible GPU multiplies two matrices right."""
    import torch

    named = visible_gpus()
    if not torch.cuda.is_available():
        if not named:
            return skip(
                "none here", "on a login node that is right: ask again on a node of the partition, with srun"
            )
        return fail(
            f"torch, built for CUDA {torch.version.cuda or 'none'}, can use none of {len(named)}; {_driver()}",
            "install the torch build for that driver's CUDA (pytorch.org), or have the driver updated",
        )
    count = torch.cuda.device_count()
    for i in range(count):
        ones = torch.ones(512, 512, device=f"cuda:{i}")
        if not bool((ones @ ones == 512).all()):
            return fail(f"GPU {i} multiplies wrong", "tell the administrator: nvidia-smi -q -d ECC")
    first = torch.cuda.get_device_properties(0)
    found = f"{count} × {first.name}, {gib(first.total_memory)}; {_driver()}, torch is built for {torch.version.cuda}"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return warn(f"{found}; no bfloat16", "write precision=float32, or ask for GPUs from the A100 on")
    return ok(found)


def _driver() -> str:
    """What the driver says about itself."""
    if shutil.which("nvidia-smi") is None:
        return "there is no nvidia-smi"
    said = run("nvidia-smi").stdout
    driver, cuda = (re.search(rf"{what} Version: *([\d.]+)", said) for what in ("Driver", "CUDA"))
    if not driver or not cuda:
        return "nvidia-smi does not answer"
    return f"driver {driver[1]} supports CUDA {cuda[1]}"


@check("nccl")
def nccl() -> Result:
    """An all-reduce over all visible GPUs, one process each."""
    import torch

    if not torch.cuda.is_available():
        return skip("no GPU here")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    return _ring(
        torch.cuda.device_count(),
        f"{version}, ",
        "see what NCCL_DEBUG=INFO prints; docs/cluster.md has hints",
    )


@check("gloo")
def gloo() -> Result:
    """An all-reduce over two processes on CPUs."""
    return _ring(2, "", "a firewall on lo, or a wrong GLOO_SOCKET_IFNAME: unset it")


def _ring(processes: int, prefix: str, mend: str, seconds: float = 120) -> Result:
    """Run slurm.doctor.ring in ``processes`` processes that are killed when they take longer than ``seconds``."""
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "slurm.doctor.ring"],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=seconds) for process in started]
    except subprocess.TimeoutExpired:
        return fail(f"{prefix}{processes} processes did not meet within {seconds:.0f} s", mend)
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            return fail(prefix + (errors.strip().splitlines() or ["ended without a word"])[-1], mend)
    return ok(prefix + said[0][0].strip())


# --- limits and names ----------------------------------------------------------------------------------------


@check("open files")
def open_files(least: int = 4096) -> Result:
    """``ulimit -n``: NCCL opens sockets to many ranks, and data_prep many pictures."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= least or soft == resource.RLIM_INFINITY:
        return ok(f"ulimit -n {_limit(soft)}")
    raised = f"in the cluster file: setup: ['ulimit -n {least}']"
    return warn(
        f"ulimit -n {soft}",
        raised if hard >= least else f"the administrator must raise the hard limit, {hard}",
    )


@check("locked memory")
def locked_memory() -> Result:
    """``ulimit -l``: InfiniBand registers memory, which must not be swapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = INFINIBAND.is_dir() and any(INFINIBAND.iterdir())
    if soft == resource.RLIM_INFINITY or not infiniband:
        return ok(
            f"ulimit -l {_limit(soft, 1024)}" + ("" if infiniband else "; no InfiniBand here to need more")
        )
    return warn(
        f"ulimit -l {_limit(soft, 1024)} with InfiniBand: NCCL may fail to register memory",
        "administrator: LimitMEMLOCK=infinity in slurmd.service, PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
    )


def _limit(value: int, unit: int = 1) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value // unit)


@check("shared memory")
def shared_memory(folder: Path = SHARED_MEMORY, least: int = 2**30) -> Result:
    """Room for the buffers through which NCCL's processes on one node talk."""
    free = shutil.disk_usage(folder).free
    if free >= least:
        return ok(f"{gib(free)} free in {folder}")
    return warn(
        f"{gib(free)} free in {folder}, NCCL wants {gib(least)}",
        f"remove what others left in {folder}, or give the container more",
    )


@check("port")
def tcp_port() -> Result:
    """A port of those that jobs meet at can be opened."""
    return ok(f"{free_port()} of 20000..59999 can be opened")


def free_port() -> int:
    """A port in 20000..59999 that nobody listens on.

    Raises:
        OSError: ten of them could not be opened.
    """
    for attempt in range(10):
        number = port(str(os.getpid()), f"doctor {attempt}")
        with socket.socket() as probe:
            try:
                probe.bind(("", number))
            except OSError as error:
                refused = error
            else:
                return number
    raise OSError(
        f"ten ports in 20000..59999 could not be opened ({refused}); is a firewall or seccomp in the way?"
    )


@check("address")
def address(nodes: int) -> Result:
    """How the other ``nodes`` of a job reach this one."""
    if launched := os.environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return ok(f"SLURM says {launched}: jobs meet there, names are not needed")
    name = socket.gethostname()
    mend = "in the cluster file name the interface: environment: {NCCL_SOCKET_IFNAME: ib0}"
    try:
        found = socket.gethostbyname(name)
    except OSError:
        return (
            ok(f"{name} does not resolve; one node does without")
            if nodes == 1
            else warn(f"{name} does not resolve", mend)
        )
    if found.startswith("127.") and nodes > 1:
        return warn(f"{name} resolves to {found}, which other nodes cannot reach", mend)
    return ok(f"{name} is {found}")
