"""FFCV's file format, version 2, in numpy: write it, verify it, read it without FFCV.

A .beton holds, in this order: a header; a descriptor for each field; a metadata row for each sample, with the
scalars themselves and a pointer to the image; pages that hold the images' bytes; and the allocation table,
which tells how many bytes each sample has there.

FFCV's own writer would decode and encode every JPEG again, cannot say when a worker of it has died (it waits
for ever) and leaves a file whose header promises all samples long before they are there. This one stores the
bytes it is given, in order; its output equals, byte for byte, that of FFCV's writer on one process.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from numpy.typing import NDArray
from PIL import Image, features

from configs import ConfigError
from data_prep.files import atomic_write, sha256_file, write_json

FORMAT_VERSION = 2
PAGE_SIZE = 1 << 23
"""FFCV's default. An image never crosses the end of a page."""
INT_FIELD, IMAGE_FIELD = 1, 2
JPEG_MODE, RAW_MODE = 0, 1
Storage = Literal["jpeg", "raw"]

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("index", "<i8"), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FIELDS = {"image": IMAGE_FIELD, "index": INT_FIELD, "label": INT_FIELD}
METADATA_START = HEADER.itemsize + len(FIELDS) * FIELD.itemsize


class SourceNote(pydantic.BaseModel):
    """Where the pictures of a set come from."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    synthetic: bool
    images: int
    faces: int | None = None
    """Of a union: crops that were taken from here, before some were left out."""
    identity_offset: int = 0
    """Of a union: what was added to the identities."""


class FaceSize(pydantic.BaseModel):
    """Mean side of the faces in their pictures, px, before they were scaled."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    mean: float
    percentiles: dict[str, float]


class Manifest(pydantic.BaseModel):
    """``set.json``: what is in the .beton beside it. Written last, so it marks the set as whole."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    count: int
    fields: tuple[str, ...]
    image_size: int
    """Side of the square images, px."""
    label_name: str
    """What the field ``label`` means; "none": it is -1 throughout."""
    sha256: str
    """Of the .beton."""
    sources: tuple[SourceNote, ...] = ()
    config_hash: str = ""
    inputs: str = ""
    """Hash of the tables that the set was made from."""
    left_out: dict[str, int] = {}
    """Reason -> rows that the config left out of the set."""
    face_size: FaceSize | None = None
    crop: dict[str, Any] = {}
    """How the faces were cut: the fields of ``crop`` as they were."""
    storage: Storage = "jpeg"
    decoder: str = ""
    """What made the pixels of a raw set from its JPEG files."""


def write_beton(
    path: str | Path,
    jpegs: Iterable[bytes],
    index: Sequence[int] | NDArray[np.int64],
    label: Sequence[int] | NDArray[np.int64],
    *,
    image_size: int = 256,
    label_name: str = "none",
    sources: Sequence[SourceNote] = (),
    config_hash: str = "",
    inputs: str = "",
    left_out: Mapping[str, int] | None = None,
    face_size: FaceSize | None = None,
    crop: dict[str, Any] | None = None,
    storage: Storage = "jpeg",
) -> Manifest:
    """Write a verified .beton and its manifest, each by a temporary and a rename.

    Args:
        path: The .beton; the manifest has the suffix .json.
        jpegs: N RGB JPEG files of ``image_size`` squared; may be a generator, each is held only for a moment.
        index: (N,) what the field ``index`` holds.
        label: (N,) what the field ``label`` holds.
        image_size: Side of the images, px.
        label_name: What the label means; "none": nothing, it is -1.
        sources: Where the images come from.
        config_hash: Of the configuration that made them.
        inputs: Hash of the tables that they were taken from.
        left_out: Reason -> images of these tables that are not among them.
        face_size: Statistics of the faces in their pictures.
        crop: How they were cut.
        storage: The JPEG files as they are, or the pixels that Pillow decodes from them.

    Raises:
        ConfigError: no samples, an image of another size, or not as many images as labels.
    """
    path = Path(path)
    metadata = np.zeros(len(index), METADATA)
    metadata["index"], metadata["label"] = index, label
    metadata["image"]["width"] = metadata["image"]["height"] = image_size
    if not len(metadata):
        raise ConfigError(f"{path}: there is no face to write; see the report for what was rejected and why")
    with atomic_write(path, "w+b") as file:
        if storage == "raw":
            metadata["image"]["mode"] = RAW_MODE
            jpegs = (_pixels(jpeg).tobytes() for jpeg in jpegs)
        digests = _write(file, jpegs, metadata)
        file.flush()
        _verify(Path(file.name), digests, image_size)
    manifest = Manifest(
        count=len(metadata),
        fields=tuple(FIELDS),
        image_size=image_size,
        label_name=label_name,
        sha256=sha256_file(path),
        sources=tuple(sources),
        config_hash=config_hash,
        inputs=inputs,
        left_out=dict(left_out or {}),
        face_size=face_size,
        crop=crop or {},
        storage=storage,
        decoder=_decoder() if storage == "raw" else "",
    )
    write_json(path.with_suffix(".json"), manifest.model_dump())
    return manifest


def _write(file: IO[bytes], images: Iterable[bytes], metadata: np.ndarray) -> list[bytes]:
    """Fill ``file``; returns the SHA-256 of each image."""
    allocations = np.zeros(len(metadata), ALLOCATION)
    allocations["sample_id"] = np.arange(len(metadata))
    digests = []
    # The pages start at a multiple of the page size, after the metadata.
    position = -(-(METADATA_START + metadata.nbytes) // PAGE_SIZE) * PAGE_SIZE
    for i, image in enumerate(images):
        if i == len(metadata):
            raise ConfigError(f"{file.name}: more images than the {len(metadata)} labels")
        left = -position % PAGE_SIZE or PAGE_SIZE
        if len(image) > left:
            position += left
        file.seek(position)
        file.write(image)
        allocations[i]["ptr"], allocations[i]["size"] = position, len(image)
        digests.append(hashlib.sha256(image).digest())
        position += len(image)
    if len(digests) != len(metadata):
        raise ConfigError(f"{file.name}: {len(digests)} images for {len(metadata)} labels")
    metadata["image"]["data_ptr"] = allocations["ptr"]
    end = -(-position // PAGE_SIZE) * PAGE_SIZE
    file.seek(end)
    file.write(allocations.tobytes())
    file.seek(0)
    file.write(_header(len(metadata), end) + metadata.tobytes())
    return digests


def _header(count: int, allocation_table: int) -> bytes:
    header = np.zeros((), HEADER)
    header["version"], header["num_fields"], header["page_size"] = FORMAT_VERSION, len(FIELDS), PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = count, allocation_table
    fields = np.zeros(len(FIELDS), FIELD)
    for field, (name, type_id) in zip(fields, FIELDS.items(), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return header.tobytes() + fields.tobytes()


def _verify(path: Path, digests: list[bytes], image_size: int) -> None:
    """Every row of the file just written has the bytes it was given and decodes to the right size."""
    beton = Beton(path)

    def check(i: int) -> None:
        if hashlib.sha256(beton.stored(i).tobytes()).digest() != digests[i]:
            raise OSError(f"{path}: row {i} read back different from what was written; check the disk")
        if beton.image(i).shape != (image_size, image_size, 3):
            raise ConfigError(f"{path}: row {i} is {beton.image(i).shape}, not {image_size} squared RGB")

    # Threads: Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(check, range(len(beton)), chunksize=64):
            pass


def _pixels(jpeg: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def _decoder() -> str:
    return f"Pillow {Image.__version__}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}"


class Beton:
    """A .beton written by :func:`write_beton`, or by FFCV with the same fields.

    ``len(beton)`` samples; thread-safe; the file is mapped, not loaded.

    Raises:
        ConfigError: on opening a file that is no .beton, has other fields, or is not whole. FFCV itself would
            open a half-written one and hand out zeros.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < METADATA_START:
                raise self._refused("too short")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = np.frombuffer(self._bytes, HEADER, count=1)[0]
        if header["version"] != FORMAT_VERSION or header["num_fields"] != len(FIELDS):
            raise self._refused("no FFCV file of version 2 with three fields")
        self._check_fields()
        count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
        if table == 0 or size != table + count * ALLOCATION.itemsize:
            raise self._refused("not whole: its writer was stopped, or the copy was cut short")
        self._metadata = np.frombuffer(self._bytes, METADATA, count, METADATA_START)
        allocations = np.frombuffer(self._bytes, ALLOCATION, count, table)
        self._starts = self._metadata["image"]["data_ptr"]
        self._sizes = np.zeros(count, np.int64)
        self._sizes[allocations["sample_id"]] = allocations["size"]
        self._raw = self._metadata["image"]["mode"] == RAW_MODE

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(f"{self.path}: {reason}; write it again with 'python -m data_prep write CONFIG'")

    def _check_fields(self) -> None:
        fields = np.frombuffer(self._bytes, FIELD, len(FIELDS), HEADER.itemsize)
        found = {bytes(field["name"]).rstrip(b"\0").decode(): int(field["type_id"]) for field in fields}
        if found != FIELDS:
            raise self._refused(f"its fields are {sorted(found)}, not {sorted(FIELDS)}")

    def __len__(self) -> int:
        return len(self._metadata)

    def stored(self, i: int) -> NDArray[np.uint8]:
        """The stored JPEG file of sample ``i``, or its pixels in one row, not copied."""
        return np.frombuffer(self._bytes, np.uint8, self._sizes[i], self._starts[i])

    def is_raw(self, i: int) -> bool:
        """Are the pixels of sample ``i`` stored, rather than a JPEG file?"""
        return bool(self._raw[i])

    def jpeg(self, i: int) -> bytes:
        """The stored JPEG file of sample ``i``; of a raw one, its pixels encoded with quality 95."""
        if not self.is_raw(i):
            return self.stored(i).tobytes()
        buffer = io.BytesIO()
        Image.fromarray(self.image(i)).save(buffer, "JPEG", quality=95, subsampling=0)
        return buffer.getvalue()

    def image(self, i: int) -> NDArray[np.uint8]:
        """(S, S, 3) uint8 RGB, decoded by Pillow; as it is stored, not copied, where it is raw."""
        if self.is_raw(i):
            height, width = (int(self._metadata["image"][side][i]) for side in ("height", "width"))
            if self._sizes[i] != height * width * 3:
                raise self._refused(f"row {i} has {self._sizes[i]} bytes for {height} x {width} RGB pixels")
            return self.stored(i).reshape(height, width, 3)
        return _pixels(self.jpeg(i))

    def column(self, name: str) -> NDArray[np.int64]:
        """(N,) int64: the field "index" or "label"."""
        return self._metadata[name].astype(np.int64)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest beside the .beton ``path``."""
    manifest = Path(path).with_suffix(".json")
    if not manifest.exists():
        raise ConfigError(
            f"{manifest}: no such file, so {path} is not whole; run 'python -m data_prep write'"
        )
    return Manifest.model_validate_json(manifest.read_bytes())


def read_labels(path: str | Path) -> pa.Table:
    """``set.parquet`` beside the .beton ``path``: one row a sample, in the same order."""
    return pq.read_table(Path(path).with_suffix(".parquet"), partitioning=None)
