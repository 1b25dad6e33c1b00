"""Order, position and share of a rank; FFCV's decoder against its loader and against Pillow."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.transforms import ToTensor

from configs import ConfigError
from data_prep.beton import Beton
from pretrain.data import Batch, Batches, DataConfig, epoch_order
from pretrain.distributed import Ranks
from pretrain.views import CropConfig, ViewsConfig, make_views


def batches(path, *, decoder="pillow", batch_size=16, seed=0, rank=0, world=1, rows=None):
    config = DataConfig(path=str(path), decoder=decoder, workers=1, rows=rows and str(rows))
    place = Ranks(rank, world, rank, world, torch.device("cpu"))
    return Batches(config, place, batch_size=batch_size, seed=seed)


def take(iterator, count):
    """The next ``count`` batches, copied."""
    found = [Batch(images.clone(), rows) for images, rows in itertools.islice(iterator, count)]
    iterator.close()
    return found


def test_order_is_a_permutation_that_seed_and_epoch_change():
    orders = [tuple(epoch_order(s, e, 50)) for s, e in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4


@pytest.mark.parametrize("decoder", ["pillow", "ffcv"])
def test_pixels_belong_to_the_rows(beton_path, decoder):
    beton = Beton(beton_path)
    for batch in take(batches(beton_path, decoder=decoder).from_step(0), 8):  # into the second epoch
        expected = np.stack([beton.image(int(row)) for row in batch.rows])
        difference = np.abs(batch.images.numpy().astype(int) - expected)
        if decoder == "pillow":
            assert difference.max() == 0
        else:  # the fast DCT of FFCV's decoder
            assert difference.mean() < 1.5
            assert np.percentile(difference, 99) <= 6


@pytest.mark.parametrize("decoder", ["pillow", "ffcv"])
def test_entered_at_any_step_the_sequence_is_the_same(beton_path, decoder):
    source = batches(beton_path, decoder=decoder)
    whole = take(source.from_step(0), 15)
    for start in (1, 6, 8):
        part = take(source.from_step(start), 15 - start)
        for a, b in zip(whole[start:], part, strict=True):
            assert np.array_equal(a.rows, b.rows)
            assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_global_batch(beton_path, world):
    alone = take(batches(beton_path).from_step(4), 5)
    shares = [take(batches(beton_path, rank=r, world=world).from_step(4), 5) for r in range(world)]
    for step in range(5):
        joined = np.concatenate([share[step].rows for share in shares])
        assert np.array_equal(joined, alone[step].rows)


def test_views_do_not_depend_on_the_number_of_ranks(beton_path):
    """The joined views of four ranks are those of one, sample by sample, bit for bit."""
    config = ViewsConfig(
        crops=(CropConfig(count=2, size=48, scale=(0.2, 1)), CropConfig(count=3, size=24, scale=(0.1, 0.2)))
    )

    def views_of(rank, world):
        (batch,) = take(batches(beton_path, rank=rank, world=world).from_step(7), 1)
        groups = make_views(batch.images, config, seed=0, epoch=1, index=batch.rows)
        return [
            group.unflatten(0, (crop.count, -1)) for group, crop in zip(groups, config.crops, strict=True)
        ]

    shares = [views_of(rank, 4) for rank in range(4)]
    for number, alone in enumerate(views_of(0, 1)):
        assert torch.equal(torch.cat([share[number] for share in shares], 1), alone)


def test_a_subset_is_learnt_from_alone(beton_path, tmp_path):
    chosen = np.random.default_rng(0).permutation(96)[:40]
    np.save(tmp_path / "rows.npy", chosen)
    source = batches(beton_path, batch_size=8, rows=tmp_path / "rows.npy")
    assert source.steps_per_epoch == 5
    found = take(source.from_step(0), 5)
    assert sorted(np.concatenate([batch.rows for batch in found])) == sorted(chosen)
    expected = np.stack([Beton(beton_path).image(int(row)) for row in found[0].rows])
    assert np.array_equal(found[0].images.numpy(), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([3, 96]), "names row 96, but the set has rows 0 to 95"),
        (np.array([3, 3]), "names a row twice"),
        (np.array([0.5]), "whole numbers in one axis"),
    ],
)
def test_a_wrong_subset_is_refused(beton_path, tmp_path, rows, message):
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(ConfigError, match=message):
        batches(beton_path, rows=tmp_path / "rows.npy")


def test_pixels_are_those_of_ffcvs_own_loader(beton_path):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "index": None, "label": None}
    theirs = Loader(str(beton_path), batch_size=16, num_workers=1, pipelines=pipelines)
    expected = torch.cat([images.clone() for (images,) in theirs])
    for batch in take(batches(beton_path, decoder="ffcv").from_step(0), 6):
        assert torch.equal(batch.images, expected[batch.rows])


@pytest.mark.parametrize("decoder", ["pillow", "ffcv"])
def test_leaving_an_epoch_early_leaves_no_thread_behind(beton_path, decoder):
    before = threading.active_count()
    for _ in range(3):
        take(batches(beton_path, decoder=decoder).from_step(0), 2)
    assert threading.active_count() == before


def test_a_damaged_picture_is_named(beton_path, tmp_path):
    """FFCV's loader would hand out whatever was in the buffer."""
    damaged = tmp_path / "set.beton"
    content = bytearray(beton_path.read_bytes())
    start = content.index(Beton(beton_path).jpeg(5))
    content[start : start + 40] = bytes(40)
    damaged.write_bytes(content)
    with pytest.raises(OSError, match="row 5 is no whole JPEG"):
        take(batches(damaged, decoder="ffcv").from_step(0), 6)


def test_a_batch_stays_as_it_is_until_the_next(beton_path):
    """The threads decode ahead meanwhile, also into the next epoch."""
    source = batches(beton_path, decoder="ffcv").from_step(0)
    for _ in range(9):
        images = next(source).images
        before = images.clone()
        time.sleep(0.1)
        assert torch.equal(images, before)
    source.close()


def test_refusals(beton_path, tmp_path):
    with pytest.raises(ConfigError, match="batch_size: 97"):
        batches(beton_path, batch_size=97)
    with pytest.raises(ConfigError, match="not a multiple of the 3 ranks"):
        batches(beton_path, world=3)
    cut = tmp_path / "cut.beton"
    cut.write_bytes(beton_path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not whole"):
        batches(cut)
