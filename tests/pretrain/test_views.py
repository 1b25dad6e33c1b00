"""Views against torchvision's own transforms, and their independence of rank, order and device path."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from pretrain import views
from pretrain.views import CropConfig, ViewParameters, ViewsConfig, make_views

CROPS = (CropConfig(count=2, size=48, scale=(0.14, 1.0)), CropConfig(count=4, size=24, scale=(0.05, 0.14)))
CONFIG = ViewsConfig(crops=CROPS, blur_sigma=(0.1, 1.0))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def parameters(n: int, **changes) -> ViewParameters:
    """Parameters that do nothing but resize, except for ``changes``."""
    nothing = {
        "box": np.tile([0, 0, 256, 256], (n, 1)),
        "flip": np.zeros(n, bool),
        "jitter": np.zeros(n, bool),
        "order": np.tile([0, 1, 2, 3], (n, 1)),
        "factors": np.tile(np.float32([1, 1, 1, 0]), (n, 1)),
        "grey": np.zeros(n, bool),
        "sigma": np.zeros(n, np.float32),
    }
    return ViewParameters(**{**nothing, **changes})


def test_shapes_and_memory(images):
    groups = make_views(images, CONFIG, seed=0, epoch=0, index=np.arange(6))
    assert [tuple(g.shape) for g in groups] == [(12, 3, 48, 48), (24, 3, 24, 24)]
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in groups)


def test_a_sample_looks_the_same_in_any_batch(images):
    """What a sample looks like depends on its index only, not on its neighbours or its place."""
    together = make_views(images, CONFIG, seed=3, epoch=7, index=np.arange(10, 16))
    alone = make_views(images[4:5], CONFIG, seed=3, epoch=7, index=np.array([14]))
    for group, single in zip(together, alone, strict=True):
        assert torch.equal(group[4::6], single)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": np.array([1])}])
def test_seed_epoch_and_index_change_the_view(images, change):
    arguments = {"seed": 0, "epoch": 0, "index": np.array([0])}
    first = make_views(images[:1], CONFIG, **arguments)[0]
    second = make_views(images[:1], CONFIG, **{**arguments, **change})[0]
    assert not torch.equal(first, second)


def test_uniforms_are_uniform_and_independent():
    u = views.uniforms(5, 2, 1, np.arange(20_000), 6)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([u, views.uniforms(5, 2, 2, np.arange(20_000), 6)], 1).T)
    assert np.abs(correlation - np.eye(12)).max() < 0.03
    assert not np.array_equal(
        views.uniforms(0, 1, 0, np.arange(3), 2), views.uniforms(1, 0, 0, np.arange(3), 2)
    )


@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
def test_boxes_follow_torchvision(scale):
    """Two-sample tests of area, aspect and place against RandomResizedCrop.get_params."""
    crop = CropConfig(count=1, size=32, scale=scale)
    ours = views.draw(CONFIG, crop, (256, 256), seed=0, epoch=0, index=np.arange(4000), view=0).box
    torch.manual_seed(0)
    blank = torch.zeros(3, 256, 256)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(4000)])
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("path", [views._crop_each, views.crop_batched])
@pytest.mark.parametrize("box", [(0, 0, 256, 256), (31, 7, 180, 200), (100, 90, 30, 24), (5, 200, 61, 50)])
def test_both_crop_paths_equal_torchvision(images, path, box):
    """Shrinking and enlarging; the CPU path rounds to whole grey levels."""
    top, left, height, width = box
    expected = tv.resized_crop(
        images.permute(0, 3, 1, 2).float(), top, left, height, width, [48, 48], antialias=True
    )
    ours = path(images, np.tile(box, (6, 1)), 48) * 255
    assert (ours - expected).abs().max() < (1.01 if path is views._crop_each else 0.01)


@pytest.mark.parametrize(
    ("number", "factor", "theirs"),
    [
        (0, 1.7, tv.adjust_brightness),
        (0, 0.3, tv.adjust_brightness),
        (1, 1.6, tv.adjust_contrast),
        (1, 0.2, tv.adjust_contrast),
        (2, 1.8, tv.adjust_saturation),
        (2, 0.0, tv.adjust_saturation),
        (3, 0.2, tv.adjust_hue),
        (3, -0.15, tv.adjust_hue),
    ],
)
def test_colour_operations_equal_torchvision(images, number, factor, theirs):
    x = images.permute(0, 3, 1, 2).float() / 255
    factors = np.tile(np.float32([1, 1, 1, 0]), (6, 1))
    factors[:, number] = factor
    ours = views.colour(x.clone(), parameters(6, jitter=np.ones(6, bool), factors=factors))
    torch.testing.assert_close(ours, theirs(x, factor), atol=2e-3, rtol=0)


def test_the_order_of_the_colour_operations_is_each_samples_own(images):
    x = images[:2].permute(0, 3, 1, 2).float() / 255
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    factors = np.tile(np.float32([1.5, 0.5, 1.4, 0.1]), (2, 1))
    ours = views.colour(x.clone(), parameters(2, jitter=np.ones(2, bool), order=order, factors=factors))
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for sample in range(2):
        expected = x[sample]
        for k in order[sample]:
            expected = operations[k](expected, float(factors[sample, k]))
        torch.testing.assert_close(ours[sample], expected, atol=4e-3, rtol=0)


def test_grey_flip_and_untouched(images):
    x = images[:3].permute(0, 3, 1, 2).float() / 255
    ours = views.colour(x.clone(), parameters(3, grey=np.array([True, False, False])))
    torch.testing.assert_close(ours[0], tv.rgb_to_grayscale(x[0], 3), atol=2e-3, rtol=0)
    assert torch.equal(ours[1:], x[1:])
    plain = ViewsConfig(crops=CROPS, mean=(0, 0, 0), std=(1, 1, 1))
    flipped = views.apply(images[:1], parameters(1, flip=np.array([True])), 64, plain)
    straight = views.apply(images[:1], parameters(1), 64, plain)
    assert torch.equal(flipped, straight.flip(-1))


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
def test_blur_equals_scipy(images, sigma):
    from scipy.ndimage import gaussian_filter

    x = images[:2].permute(0, 3, 1, 2).float()[:, :, ::4, ::4].contiguous() / 255
    ours = views.blur(x.clone(), np.array([sigma, 0], np.float32))
    expected = gaussian_filter(x[0].numpy().astype(float), (0, sigma, sigma), mode="nearest", truncate=12)
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-5)
    assert torch.equal(ours[1], x[1])


def test_probabilities(images):
    drawn = views.draw(CONFIG, CROPS[0], (256, 256), seed=1, epoch=0, index=np.arange(5000), view=0)
    for mask, share in ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.grey, 0.2), (drawn.sigma > 0, 0.5)):
        assert abs(mask.mean() - share) < 0.03
    assert drawn.factors[:, :3].min() >= 0.2 - 1e-6
    assert drawn.factors[:, :3].max() <= 1.8 + 1e-6
    assert len(np.unique(drawn.order, axis=0)) == 24
