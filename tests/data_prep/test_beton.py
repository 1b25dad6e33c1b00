from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.types import TYPE_ID_HANDLER
from ffcv.writer import DatasetWriter
from PIL import Image

from configs import ConfigError
from data_prep.beton import Beton, SourceNote, read_manifest, write_beton

COUNT, PHOTOGRAPHS = 110, 25


def jpeg(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def jpegs(astronaut: Image.Image) -> list[bytes]:
    """Crops of a photograph; then noise, so that together they need more than one page."""
    generator = np.random.default_rng(0)
    pixels = np.asarray(astronaut)
    crops = []
    for i in range(COUNT):
        y, x = generator.integers(0, 256, 2)
        crop = pixels[y : y + 256, x : x + 256]
        crops.append(crop if i < PHOTOGRAPHS else generator.integers(0, 256, crop.shape, dtype=np.uint8))
    return [jpeg(crop) for crop in crops]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, jpegs: list[bytes]) -> Path:
    path = tmp_path_factory.mktemp("beton") / "set.beton"
    source = SourceNote(name="crops", kind="folder", synthetic=False, images=1)
    write_beton(path, jpegs, np.arange(COUNT), np.arange(COUNT)[::-1] - 1, sources=[source])
    return path


def test_reads_back_what_was_written(path: Path, jpegs: list[bytes]) -> None:
    beton = Beton(path)
    assert [beton.jpeg(i) for i in range(len(beton))] == jpegs
    assert beton.column("index").tolist() == list(range(COUNT))
    assert beton.column("label").tolist() == list(range(COUNT - 2, -2, -1))
    assert np.array_equal(beton.image(3), np.asarray(Image.open(BytesIO(jpegs[3]))))


def test_the_manifest_describes_it(path: Path) -> None:
    manifest = read_manifest(path)
    assert (manifest.count, manifest.image_size, manifest.fields) == (COUNT, 256, ("image", "index", "label"))
    assert manifest.sources[0].name == "crops"


class _StoredJpeg(RGBImageField):
    """FFCV's image field, made to store a JPEG file as it is."""

    def encode(self, destination: Any, image: bytes, malloc: Any) -> None:
        destination["mode"], destination["height"], destination["width"] = 0, 256, 256
        destination["data_ptr"], storage = malloc(len(image))
        storage[:] = np.frombuffer(image, np.uint8)


class _Samples(Sequence[tuple[bytes, int, int]]):
    def __init__(self, jpegs: list[bytes]) -> None:
        self.jpegs = jpegs

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, i: Any) -> Any:
        return self.jpegs[i], i, COUNT - 2 - i


def test_equals_the_file_of_ffcvs_own_writer(
    path: Path, jpegs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TYPE_ID_HANDLER, 2, _StoredJpeg)
    fields = {"image": _StoredJpeg(), "index": IntField(), "label": IntField()}
    theirs = tmp_path / "theirs.beton"
    DatasetWriter(str(theirs), fields, num_workers=1).from_indexed_dataset(_Samples(jpegs), chunksize=COUNT)
    assert path.stat().st_size > 3 << 23, "more than one page of 8 MiB"
    assert theirs.read_bytes() == path.read_bytes()


def test_ffcvs_loader_reads_it(path: Path) -> None:
    loader = Loader(
        str(path),
        batch_size=32,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "index": [IntDecoder()], "label": [IntDecoder()]},
    )
    beton = Beton(path)
    seen = 0
    for images, index, label in loader:
        for image, i, its_label in zip(images, index[:, 0], label[:, 0], strict=True):
            assert its_label == COUNT - 2 - i
            # FFCV takes the fast, less exact inverse DCT.
            difference = np.abs(image.astype(int) - beton.image(int(i)))
            if i < PHOTOGRAPHS:
                assert np.percentile(difference, 95) <= 5
            assert difference.mean() < 3
            seen += 1
    assert seen == COUNT


@pytest.mark.parametrize("cut", [1, 24 * COUNT, 24 * COUNT + 1, 10_000_000, None])
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, cut: int | None) -> None:
    short = tmp_path / "short.beton"
    short.write_bytes(path.read_bytes()[: -cut if cut else 100])
    with pytest.raises(ConfigError, match=r"short\.beton"):
        Beton(short)


def test_a_file_whose_writer_was_stopped_is_refused(path: Path, tmp_path: Path) -> None:
    """FFCV's writer fills in the pointer to the allocation table at the very end."""
    data = bytearray(path.read_bytes())
    data[16:24] = bytes(8)
    half = tmp_path / "half.beton"
    half.write_bytes(data)
    with pytest.raises(ConfigError, match="not whole"):
        Beton(half)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.beton"
    other.write_bytes(os.urandom(20_000))
    with pytest.raises(ConfigError, match="no FFCV file"):
        Beton(other)


def test_nothing_appears_when_writing_fails(tmp_path: Path, jpegs: list[bytes]) -> None:
    def broken() -> Iterator[bytes]:
        yield jpegs[0]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_beton(tmp_path / "set.beton", broken(), [0, 1], [0, 1])
    with pytest.raises(ConfigError, match="1 images for 2 labels"):
        write_beton(tmp_path / "set.beton", jpegs[:1], [0, 1], [0, 1])
    with pytest.raises(ConfigError, match="more images than the 1 labels"):
        write_beton(tmp_path / "set.beton", jpegs[:2], [0], [0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", [128, 257])
def test_an_image_of_another_size_is_refused(tmp_path: Path, side: int) -> None:
    # FFCV's decoder would write past its buffer, or leave the rest of it as it was.
    with pytest.raises(ConfigError, match="row 0"):
        write_beton(tmp_path / "set.beton", [jpeg(np.zeros((side, side, 3), np.uint8))], [0], [0])


def test_a_set_without_manifest_is_refused(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.beton"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"alone\.json"):
        read_manifest(alone)
