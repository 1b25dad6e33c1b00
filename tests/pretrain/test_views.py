"""Views against torchvision's own transforms, and their independence of rank, order and device path."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
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
        "solarize": np.zeros(n, bool),
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


DRAWS = 20_000


def drawn(crop: CropConfig) -> ViewParameters:
    swav = ViewsConfig(crops=(crop,))
    return views.draw(swav, crop, (256, 256), seed=0, epoch=0, index=np.arange(DRAWS), view=0)


def same_distribution(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
def test_boxes_follow_torchvision(scale):
    """Two-sample Kolmogorov-Smirnov tests of area, aspect and place."""
    ours = drawn(CropConfig(count=1, size=32, scale=scale)).box
    torch.manual_seed(0)
    blank, transform = torch.zeros(3, 256, 256), v2.RandomResizedCrop(32, scale)
    made = [transform.make_params([blank]) for _ in range(DRAWS)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in made])
    for measure in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert same_distribution(measure(ours), measure(theirs))


def test_colour_and_blur_follow_torchvision():
    """Factors and order of the colour jitter, and the blur's radius."""
    ours = drawn(CropConfig(count=1, size=32, scale=(0.14, 1.0)))
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.8, 0.8, 0.8, 0.2)
    made = [jitter.make_params([]) for _ in range(DRAWS)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for number, name in enumerate(names):
        assert same_distribution(ours.factors[:, number], np.array([float(p[name]) for p in made]))
    first = np.array([int(p["fn_idx"][0]) for p in made])
    counts = [np.bincount(x, minlength=4) for x in (ours.order[:, 0], first)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    blur = v2.GaussianBlur(23, (0.1, 2.0))
    sigma = np.array([blur.make_params([])["sigma"][0] for _ in range(DRAWS)])
    assert same_distribution(ours.sigma[ours.sigma > 0], sigma)


def torchvision_view(image: torch.Tensor, p: ViewParameters, i: int, size: int) -> torch.Tensor:
    """View ``i`` by torchvision's functional operations alone, floats in 0..1."""
    top, left, height, width = p.box[i].tolist()
    x = tv.resized_crop(
        image.permute(2, 0, 1).float() / 255, top, left, height, width, [size, size], antialias=True
    )
    if p.flip[i]:
        x = tv.horizontal_flip(x)
    if p.jitter[i]:
        operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for k in p.order[i]:
            x = operations[k](x, float(p.factors[i, k]))
    if p.grey[i]:
        x = tv.rgb_to_grayscale(x, 3)
    if p.sigma[i] > 0:
        pad = 12  # torchvision mirrors at the border, Pillow and we repeat the last pixel
        x = tv.gaussian_blur(tv.pad(x, pad, padding_mode="edge"), 2 * pad + 1, [float(p.sigma[i])] * 2)
        x = x[:, pad:-pad, pad:-pad]
    return x


@pytest.mark.parametrize("crop", CROPS)
def test_the_whole_chain_equals_torchvision(images, crop, monkeypatch):
    """Within two grey levels at 99.9 % of the pixels, for 120 drawn views in float arithmetic."""
    monkeypatch.setattr(views, "_crop_each", views.crop_batched)  # the CPU's own path rounds to grey levels
    plain = ViewsConfig(crops=CROPS, blur_sigma=(0.1, 2.0), mean=(0, 0, 0), std=(1, 1, 1))
    many = images.repeat(20, 1, 1, 1)
    p = views.draw(plain, crop, (256, 256), seed=0, epoch=0, index=np.arange(len(many)), view=0)
    ours = views.apply(many, p, crop.size, plain)
    theirs = torch.stack([torchvision_view(many[i], p, i, crop.size) for i in range(len(many))])
    levels = 255 * (ours - theirs).abs()
    assert levels.quantile(0.999) < 2, levels.max()


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
    torch.testing.assert_close(ours, theirs(x, factor), atol=1 / 255, rtol=0)


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


def test_solarization_is_torchvisions(images):
    plain = views.ViewsConfig(crops=CROPS, mean=(0, 0, 0), std=(1, 1, 1))
    before = views.apply(images[:2], parameters(2), 48, plain)
    after = views.apply(images[:2], parameters(2, solarize=np.array([True, False])), 48, plain)
    expected = tv.solarize(before[0], 0.5)
    torch.testing.assert_close(after[0], expected, atol=0, rtol=0)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_a_crop_may_have_its_own_blur_and_solarization():
    """BYOL's two views: the first is always blurred, the second rarely, and is solarized at times."""
    config = views.ViewsConfig(
        crops=(
            views.CropConfig(count=1, size=48, scale=(0.08, 1), blur=1.0),
            views.CropConfig(count=1, size=48, scale=(0.08, 1), blur=0.1, solarize=0.2),
        )
    )
    arguments = {"seed": 1, "epoch": 0, "index": np.arange(5000)}
    one, two = (
        views.draw(config, crop, (256, 256), **arguments, view=i) for i, crop in enumerate(config.crops)
    )
    assert (one.sigma > 0).all()
    assert not one.solarize.any()
    assert abs((two.sigma > 0).mean() - 0.1) < 0.02
    assert abs(two.solarize.mean() - 0.2) < 0.02


def test_a_plain_crop_is_the_whole_picture(images):
    config = views.ViewsConfig(crops=(*CROPS, views.CropConfig(count=1, size=32, plain=True)), solarize=1)
    *others, plain = make_views(images, config, seed=0, epoch=0, index=np.arange(6))
    expected = tv.resize(images.permute(0, 3, 1, 2), [32, 32], antialias=True)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (config.mean, config.std))
    torch.testing.assert_close(plain, (expected / 255 - mean) / std, atol=1e-5, rtol=0)
    for ours, theirs in zip(
        others, make_views(images, CONFIG, seed=0, epoch=0, index=np.arange(6)), strict=True
    ):
        assert ours.shape == theirs.shape


@pytest.mark.parametrize(
    ("crop", "message"),
    [
        ({"count": 1, "size": 32}, "give scale"),
        ({"count": 1, "size": 32, "plain": True, "scale": (0.2, 1)}, "a plain crop has no scale"),
        ({"count": 1, "size": 32, "plain": True, "blur": 1.0}, "a plain crop has no scale"),
    ],
)
def test_crops_that_make_no_sense_are_refused(crop, message):
    with pytest.raises(ValueError, match=message):
        views.CropConfig(**crop)
