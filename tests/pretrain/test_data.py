"""Order, position and share of a rank; FFCV against Pillow; the guards around FFCV."""

import threading

import numpy as np
import pytest
import torch

from configs import ConfigError
from data_prep.beton import Beton
from pretrain.data import Batches, DataConfig, epoch_order
from pretrain.distributed import Ranks


def batches(path, *, decoder="pillow", batch_size=16, seed=0, rank=0, world=1):
    config = DataConfig(path=str(path), decoder=decoder, workers=1)
    place = Ranks(rank, world, rank, world, torch.device("cpu"))
    return Batches(config, place, batch_size=batch_size, seed=seed)


def take(iterator, count):
    found = [next(iterator) for _ in range(count)]
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


def test_leaving_an_epoch_early_leaves_no_thread_behind(beton_path):
    source = batches(beton_path, decoder="ffcv")
    take(source.from_step(0), 1)
    before = threading.active_count()
    for _ in range(5):
        take(source.from_step(0), 2)
    assert threading.active_count() == before


def test_a_batch_is_not_overwritten_by_the_next(beton_path):
    first, *_ = found = take(batches(beton_path, decoder="ffcv").from_step(0), 6)
    assert torch.equal(first.images, found[0].images)
    again = take(batches(beton_path, decoder="ffcv").from_step(0), 1)[0]
    assert torch.equal(first.images, again.images)


def test_refusals(beton_path, tmp_path):
    with pytest.raises(ConfigError, match="batch_size: 97"):
        batches(beton_path, batch_size=97)
    with pytest.raises(ConfigError, match="not a multiple of the 3 ranks"):
        batches(beton_path, world=3)
    cut = tmp_path / "cut.beton"
    cut.write_bytes(beton_path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not whole"):
        batches(cut)
