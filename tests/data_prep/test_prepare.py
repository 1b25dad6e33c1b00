from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from data_prep.detect import DetectConfig, batch_of, processes
from data_prep.files import read_commit
from data_prep.images import PictureError
from data_prep.prepare import Prepared, ahead, batches, letterbox, prepare, resize_like_package
from data_prep.stage import Shard, Stage, run


def test_letterbox_shrinks_but_never_enlarges() -> None:
    small, scale = letterbox(Image.new("RGB", (100, 60), "red"), 128)
    assert scale == 1
    assert (small[:60, :100] == (255, 0, 0)).all()
    assert (small[60:] == small[-1, -1]).all()
    large, scale = letterbox(Image.new("RGB", (1000, 500), "red"), 128)
    assert scale == pytest.approx(0.128)
    assert (large[:64, :128] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("size", "allow_upscaling", "scaled"),
    [
        ((300, 200), False, (300, 200)),
        ((300, 200), True, (1536, 1024)),
        ((600, 200), True, (1980, 660)),  # the long side is the limit
        ((4000, 3000), False, (1365, 1024)),
        ((4000, 500), False, (1980, 248)),
    ],
)
def test_the_package_s_rule_of_sizes(
    size: tuple[int, int], allow_upscaling: bool, scaled: tuple[int, int]
) -> None:
    pixels, scale = resize_like_package(Image.new("RGB", size), allow_upscaling)
    assert pixels.shape == (scaled[1], scaled[0], 3)
    assert scale == pytest.approx(scaled[0] / size[0], rel=1e-3)


def test_what_cannot_be_read_is_in_its_batch_with_the_reason() -> None:
    def read(row: dict[str, int]) -> Image.Image:
        if row["number"] == 1:
            raise PictureError("gone")
        return Image.new("RGB", (8, 8), (row["number"], 0, 0))

    rows = [{"number": number, "size": number // 4} for number in range(7)]
    pictures = [prepare(row, read, lambda image: letterbox(image, 32)) for row in rows]
    found = list(batches(pictures, key=lambda row: row["size"], most=3))
    assert [[picture.row["number"] for picture in batch.pictures] for batch in found] == [
        [0, 1, 2],
        [3],
        [4, 5, 6],
    ]
    assert [picture.error for picture in found[0].pictures] == ["", "gone", ""]
    assert found[0].pixels is not None
    assert found[0].pixels[:, 0, 0, 0].tolist() == [0, 2]
    (alone,) = batches([Prepared({}, None, error="gone")], key=len, most=3)
    assert alone.pixels is None


def test_results_come_in_order_and_no_more_than_allowed_ahead() -> None:
    begun: list[int] = []
    later = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            later.wait(10)  # the first ends last
        return number

    with ThreadPoolExecutor(4) as pool:
        results = ahead(work, range(20), pool, most=3)
        threading.Timer(0.2, later.set).start()
        assert next(results) == 0
        assert set(begun) == {0, 1, 2}
        assert list(results) == list(range(1, 20))
    assert list(ahead(work, range(3), None, most=3)) == [0, 1, 2]


def test_an_error_in_a_thread_is_an_error_here() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(ahead(lambda number: 1 // number, [1, 0, 1], pool, most=2))


def test_one_process_feeds_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [processes(DetectConfig(device=device), 8) for device in ("cpu", "auto", "cuda:1")] == [8, 1, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes(DetectConfig(), 8) == 8


def test_a_stage_takes_no_more_processes_than_are_of_use(tmp_path: Path) -> None:
    """With one process the work is done in this one, where a function that cannot be pickled is fine."""
    table = pa.table({"error": [""]})
    stage = Stage("x", tmp_path, 1, {}, lambda _: table, lambda _: 1)
    run(stage, [Shard(number, 1, "", None) for number in range(3)], 3, workers=8)
    assert all(read_commit(tmp_path, number) for number in range(3))


def test_resnet50_takes_pictures_one_by_one_on_the_cpu() -> None:
    resnet50 = DetectConfig(network="resnet50")
    assert (batch_of(resnet50, "cpu"), batch_of(resnet50, "cuda"), batch_of(DetectConfig(), "cpu")) == (
        1,
        16,
        16,
    )
    assert batch_of(DetectConfig(network="resnet50", batch=4), "cpu") == 4
