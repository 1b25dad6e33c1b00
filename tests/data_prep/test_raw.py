"""Sets that store pixels instead of JPEG files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter
from PIL import Image

from configs import ConfigError
from data_prep.__main__ import load_config
from data_prep.beton import Beton, read_manifest, write_beton
from data_prep.pipeline import STAGES, Pipeline, stage_finished
from data_prep.tables import read_shard
from pretrain.data import Batches, DataConfig
from pretrain.distributed import Ranks

COUNT = 60


@pytest.fixture(scope="module")
def jpegs(astronaut: Image.Image) -> list[bytes]:
    files = []
    for i in range(COUNT):
        buffer = BytesIO()
        astronaut.crop((2 * i, i, 2 * i + 256, i + 256)).save(buffer, "JPEG", quality=90, subsampling=0)
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, jpegs: list[bytes]) -> Path:
    path = tmp_path_factory.mktemp("raw") / "set.beton"
    write_beton(path, jpegs, np.arange(COUNT), np.arange(COUNT) - 1, storage="raw")
    return path


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(jpeg)))


def test_the_pixels_are_those_that_pillow_decodes(path: Path, jpegs: list[bytes], tmp_path: Path) -> None:
    raw = Beton(path)
    write_beton(tmp_path / "set.beton", jpegs, np.arange(COUNT), np.arange(COUNT))
    compressed = Beton(tmp_path / "set.beton")
    for i in range(COUNT):
        assert raw.is_raw(i)
        assert not compressed.is_raw(i)
        assert np.array_equal(raw.image(i), decoded(jpegs[i]))
        assert np.array_equal(raw.image(i), compressed.image(i))
    manifest = read_manifest(path)
    assert manifest.storage == "raw"
    assert manifest.decoder.startswith(f"Pillow {Image.__version__}")
    assert read_manifest(tmp_path / "set.beton").decoder == ""
    assert np.abs(decoded(raw.jpeg(3)).astype(int) - raw.image(3)).mean() < 2, "a JPEG for who wants one"


def test_equals_the_file_of_ffcvs_own_writer(path: Path, jpegs: list[bytes], tmp_path: Path) -> None:
    samples = [(decoded(jpeg), i, i - 1) for i, jpeg in enumerate(jpegs)]
    fields = {"image": RGBImageField(write_mode="raw"), "index": IntField(), "label": IntField()}
    theirs = tmp_path / "theirs.beton"
    DatasetWriter(str(theirs), fields, num_workers=1).from_indexed_dataset(samples, chunksize=COUNT)
    assert path.stat().st_size > 3 << 22, "more than one page"
    assert theirs.read_bytes() == path.read_bytes()
    assert np.array_equal(Beton(theirs).image(50), samples[50][0])


def test_ffcvs_loader_reads_it(path: Path) -> None:
    pipelines = {"image": [SimpleRGBImageDecoder()], "index": [IntDecoder()], "label": [IntDecoder()]}
    loader = Loader(
        str(path),
        batch_size=16,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=True,
        drop_last=False,
        pipelines=pipelines,
    )
    beton, seen = Beton(path), 0
    for images, index, label in loader:
        for image, i, its_label in zip(images, index[:, 0], label[:, 0], strict=True):
            assert its_label == i - 1
            assert np.array_equal(image, beton.image(int(i)))
            seen += 1
    assert seen == COUNT


@pytest.mark.parametrize("decoder", ["ffcv", "pillow"])
def test_pretraining_reads_the_same_pixels_with_either_decoder(path: Path, decoder: str) -> None:
    config = DataConfig.model_validate({"path": str(path), "decoder": decoder, "workers": 1})
    place = Ranks(0, 1, 0, 1, torch.device("cpu"))
    beton, batches = Beton(path), Batches(config, place, batch_size=20, seed=0).from_step(0)
    for _ in range(4):  # into the second epoch
        batch = next(batches)
        for image, row in zip(batch.images, batch.rows, strict=True):
            assert np.array_equal(image.numpy(), beton.image(int(row)))
    batches.close()


def test_a_picture_of_another_size_is_refused(tmp_path: Path, jpegs: list[bytes]) -> None:
    with pytest.raises(ConfigError, match="row 1"):
        write_beton(tmp_path / "set.beton", [jpegs[0], small(jpegs[1])], [0, 1], [0, 1], storage="raw")
    assert list(tmp_path.iterdir()) == []


def small(jpeg: bytes) -> bytes:
    buffer = BytesIO()
    Image.open(BytesIO(jpeg)).resize((128, 128)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_storage_and_quality_in_a_run(tmp_path: Path, astronaut: Image.Image) -> None:
    """Quality is the crops', and their bytes go into the set as they are; raw is the set's, from the same crops."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    astronaut.save(folder / "astronaut.png")
    sizes = {}
    for quality in (95, 40):
        given = [f"output={tmp_path / str(quality)}", "workers=1", f"crop.quality={quality}"]
        Pipeline(load_config(str(folder), given)).run(STAGES[:-1])
        (jpeg,) = read_shard(tmp_path / str(quality) / "crops", 0)["jpeg"].to_pylist()
        assert Beton(tmp_path / str(quality) / "set.beton").jpeg(0) == jpeg
        assert read_manifest(tmp_path / str(quality) / "set.beton").crop["quality"] == quality
        sizes[quality] = len(jpeg)
    assert sizes[40] < sizes[95] / 2

    raw = load_config(str(folder), [*given, "write.storage=raw"])
    with pytest.raises(
        ConfigError, match=r"set\.beton: made from other crops, or with other fields of write"
    ):
        Pipeline(raw).write()
    for name in ("set.beton", "set.parquet", "set.json"):
        (tmp_path / "40" / name).unlink()
    assert stage_finished(raw, "crop")
    assert not stage_finished(raw, "write")
    Pipeline(raw).write()
    assert stage_finished(raw, "write")
    assert np.array_equal(Beton(tmp_path / "40/set.beton").image(0), decoded(jpeg))
