"""SimFLE: its losses against numpy, its autoencoder against timm, what trains what, ranks, runs that are killed."""

import json
import math
import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from skimage.transform import resize
from skimage.util import view_as_blocks
from timm.models.vision_transformer import Block
from torch import nn

from configs import ConfigError, load
from data_prep.config import DataPrepConfig
from data_prep.sources.affectnet import PUBLISHED_NEW
from downstream.config import DownstreamConfig
from pretrain import backbones, distributed, train
from pretrain.data import DataConfig
from pretrain.distributed import Ranks
from pretrain.methods import METHODS, Moment, Setting, facemae
from pretrain.methods.byol import BYOLConfig
from pretrain.methods.facemae import FaceMAEConfig
from pretrain.methods.simfle import SimFLE, SimFLEConfig
from pretrain.train import PretrainConfig
from pretrain.views import CropConfig, ViewsConfig, uniforms
from tests.pretrain.runs import Run, killed_and_gone_on
from tests.pretrain.test_distributed import in_ranks
from tests.pretrain.test_methods import (
    ALONE,
    BATCH,
    STEPS,
    TINY,
    moment,
    optimizer_of,
    step_of,
    unit,
    views,
)

PATCH, SIZE, GROUPS = 16, 64, 4
PATCHES, KEPT = (SIZE // PATCH) ** 2, 4
SMALL = FaceMAEConfig(
    groups=GROUPS,
    encoder_width=16,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
)
BYOL = {"name": "byol", **TINY["byol"], "momentum_schedule": "constant"}
VARIANTS = {
    "official": {},
    "paper": {"variant": "paper"},
    "direct": {"variant": "paper", "connection": "direct"},
    "random": {"masking": "random"},
    "small crops": {},
    "simsiam": {"gfl": {"name": "simsiam", **TINY["simsiam"]}},
    "simclr": {"gfl": {"name": "simclr", **TINY["simclr"]}},
    "moco": {"gfl": {"name": "moco", **TINY["moco symmetric"]}, "variant": "paper"},
    "alone": {"facemae": None},
}
VIEWS = CropConfig(count=2, size=32, scale=(0.2, 1))
PLAIN = CropConfig(count=1, size=SIZE, plain=True)
FEW = CropConfig(count=3, size=24, scale=(0.1, 0.3))


def config(name: str, **settings: object) -> SimFLEConfig:
    """Tiny, of a variant."""
    fields = {"facemae": SMALL, "gfl": BYOL, "hidden_dim": 12, "projection_dim": 6, **VARIANTS[name]}
    return SimFLEConfig(name="simfle", **{**fields, **settings})


def setting(*crops: CropConfig, place: Ranks = ALONE) -> Setting:
    """Of a network with 64 channels, whose feature map of a whole picture is 2x2."""
    seen = ViewsConfig(crops=crops or (VIEWS, PLAIN))
    return Setting(backbones.build("resnet18", 0.125), seen, DataConfig(path="nowhere"), BATCH, place, 0)


def build(name: str, place: Ranks = ALONE, **settings: object) -> SimFLE:
    """In float64, with first weights that depend on nothing else; the groups have left the saddle."""
    torch.manual_seed(0)
    crops = {"small crops": (VIEWS, PLAIN, FEW), "alone": (VIEWS,)}.get(name, (VIEWS, PLAIN))
    method = config(name, **settings).build(setting(*crops, place=place)).double()
    if method.grouping and method.config.variant == "official":
        with torch.no_grad():
            method.grouping.conv.weight.add_(torch.randn(64, 64, 1, 1))
    return method


def pictures(step: int, method: SimFLE) -> list[torch.Tensor]:
    """Of all ranks, (V, BATCH, 3, s, s) a resolution, in the order of the crops."""
    generator = torch.Generator().manual_seed(100 + step)
    whole = torch.randn(1, BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    whole = nn.functional.interpolate(whole[0], SIZE, mode="bicubic")[None]
    few = torch.randn(3, BATCH, 3, 24, 24, generator=generator, dtype=torch.float64)
    return [views(step), whole, few][: len(method._plain)]


def flat(step: int, method: SimFLE) -> list[torch.Tensor]:
    """As the engine hands them over."""
    return [group.flatten(0, 1) for group in pictures(step, method)]


# --- the losses, from the equations --------------------------------------------------------------------------


def grouped(method: SimFLE, whole: torch.Tensor) -> np.ndarray:
    """(B, C, h, w): 1x1 convolution, batch norm and ReLU of the feature map, in numpy."""
    features = backbones.feature_map(method.backbone, whole).detach().numpy()
    weight, bias = (p.detach().numpy() for p in method.grouping.conv.parameters())
    x = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], features) + bias[:, None, None]
    x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    return np.maximum(x, 0)


def kept_patches(maps: np.ndarray, step: int) -> np.ndarray:
    """(B, K): equation 3 on the map of the drawn group, enlarged by scikit-image."""
    kept = []
    for row, sample in enumerate(maps):
        u = uniforms(0, step, 3 << 20, np.array([row]), 1)[0, 0]
        members = np.array_split(sample, GROUPS)[int(u * GROUPS)]
        score = resize(members.sum(0), (SIZE, SIZE), order=1, mode="edge", anti_aliasing=False)
        means = view_as_blocks(score, (PATCH, PATCH)).mean((2, 3)).ravel()
        kept.append(np.argsort(-means)[:KEPT])
    return np.array(kept)


def channel_cosines(maps: np.ndarray) -> np.ndarray:
    """(C, C), a picture at a time."""
    total = np.zeros((maps.shape[1],) * 2)
    for sample in maps.reshape(*maps.shape[:2], -1):
        lengths = np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
        total += (sample / lengths) @ (sample / lengths).T / len(maps)
    return total


def expected_grouping(maps: np.ndarray, variant: str) -> float:
    """A pair of channels at a time."""
    cosines, channels = channel_cosines(maps), maps.shape[1]
    same, different, distance = [], [], 0.0
    for i in range(channels):
        for j in range(channels):
            together = i // (channels // GROUPS) == j // (channels // GROUPS)
            (same if together else different).append(cosines[i, j] ** 2)
            distance += (cosines[i, j] - together) ** 2
    if variant == "official":
        return (0.001 * distance / (channels / 512) ** 2) ** 2
    return np.mean(different) - np.mean(same)


def expected_reconstruction(whole: np.ndarray, painted: np.ndarray, kept: np.ndarray, variant: str) -> float:
    """A masked patch at a time."""
    errors = []
    for picture, patches, visible in zip(whole, painted, kept, strict=True):
        blocks = view_as_blocks(picture, (3, PATCH, PATCH))[0].reshape(PATCHES, -1)
        for number in set(range(PATCHES)) - set(visible.tolist()):
            wanted = blocks[number]
            if variant == "official":
                wanted = (wanted - wanted.mean()) / np.sqrt(wanted.var(ddof=1) + 1e-6)
            errors.append(np.mean((wanted - patches[number]) ** 2))
    return np.mean(errors)


def expected_distillation(logits: np.ndarray, variant: str) -> float:
    """Equation 5 with t = 4, by scipy's relative entropy."""
    mean, each = softmax(logits.mean(0) / 4, 1), softmax(logits / 4, 2)
    if variant == "official":
        return 16 * sum(rel_entr(mean, one).sum(1).mean() for one in each)
    return sum(rel_entr(one, mean).sum(1).mean() for one in each)


@pytest.mark.parametrize("name", ["official", "paper", "direct", "random"])
def test_every_part_is_its_equation(name: str) -> None:
    method = build(name)
    seen, step = flat(0, method), 5
    loss = method(seen, moment(step)).item()
    parts = {key: x.item() for key, x in method.indicators().items()}
    twin, variant = build(name), method.config.variant

    features = twin.backbone(seen[0])
    q = unit(twin.gfl.predictor(twin.gfl.projector(features))).reshape(2, BATCH, -1)
    z = unit(twin.gfl.target_projector(twin.gfl.target_backbone(seen[0]))).reshape(2, BATCH, -1)
    expected = {"similarity": sum(np.sum((q[i] - z[1 - i]) ** 2, 1).mean() for i in (0, 1))}

    if name == "random":
        drawn = uniforms(0, step, 3 << 20, np.arange(BATCH), PATCHES)
        kept = np.argsort(-drawn, axis=1)[:, :KEPT]
    else:
        maps = grouped(twin, seen[1])
        kept = kept_patches(maps, step)
        expected["grouping"] = expected_grouping(maps, variant)
    numbers = torch.from_numpy(kept.copy())
    tokens = twin.encoder(facemae.take(facemae.patchify(seen[1], PATCH), numbers), numbers)
    painted = twin.decoder(tokens, numbers).detach().numpy()
    expected["reconstruction"] = expected_reconstruction(seen[1].numpy(), painted, kept, variant)
    if name != "direct":
        fine = twin.fine_head(tokens[:, 1:].mean(1)).detach().numpy()
        pair = twin.global_head(features).detach().numpy().reshape(2, BATCH, -1)
        expected["distillation"] = expected_distillation(np.stack([*pair, fine]), variant)

    of_gfl = {"feature_std", "effective_rank", "embedding_std", "embedding_rank"}
    assert set(parts) == {*expected, *of_gfl, *(() if name == "random" else ("mask_ties",))}
    for key, value in expected.items():
        assert parts[key] == pytest.approx(value, abs=1e-6), key
        assert abs(value) > 1e-4, f"{key}: nothing to tell"
    weights = {"similarity": 1, "reconstruction": 1, "distillation": 0.3, "grouping": 0.03}
    assert loss == pytest.approx(sum(weights[key] * x for key, x in expected.items()), abs=1e-6)


def test_small_crops_predict_both_views() -> None:
    method = build("small crops")
    seen = flat(0, method)
    method(seen, moment(0))
    twin = build("small crops")
    features = torch.cat([twin.backbone(seen[0]), twin.backbone(seen[2])])
    q = unit(twin.gfl.predictor(twin.gfl.projector(features))).reshape(5, BATCH, -1)
    z = unit(twin.gfl.target_projector(twin.gfl.target_backbone(seen[0]))).reshape(2, BATCH, -1)
    pairs = [np.sum((q[i] - z[j]) ** 2, 1).mean() for i in range(5) for j in range(2) if i != j]
    assert method.indicators()["similarity"].item() == pytest.approx(2 * np.mean(pairs), abs=1e-9)


def test_without_facemae_it_is_the_global_branch() -> None:
    """Bit for bit, BYOL: also that small crops are an addition that changes nothing where there are none."""
    torch.manual_seed(0)
    byol = METHODS["byol"](**BYOL).build(setting(VIEWS)).double()
    ours = build("alone")
    for method in (byol, ours):
        optimizer = optimizer_of(method)
        method.losses = [step_of(method, method, optimizer, [views(n)], moment(n)) for n in range(STEPS)]
    assert byol.losses == ours.losses
    assert byol.losses[0] != byol.losses[-1]
    for key, value in byol.state_dict().items():
        assert torch.equal(value, ours.gfl.state_dict()[key]), key


def test_the_released_first_weights_cost_what_they_do_there() -> None:
    """2,048 equal channels: .001 (C^2 - C^2 / 32) / 16 = 253.952, squared."""
    cosines = torch.ones(2048, 2048, dtype=torch.float64)
    assert facemae.official_grouping_loss(cosines, 32).item() == pytest.approx(253.952**2, rel=1e-12)
    maps = facemae.alike(64)(torch.rand(4, 64, 3, 3))
    torch.testing.assert_close(maps, maps[:, :1].expand_as(maps))


def test_first_weights_of_the_paper_variant_tell_groups_apart() -> None:
    torch.manual_seed(0)
    cosines = facemae.channel_cosines(facemae.apart(64, GROUPS)(torch.rand(8, 64, 4, 4)))
    same = torch.block_diag(*[torch.ones(16, 16)] * GROUPS).bool()
    assert cosines[same].mean() > 0.9
    assert cosines[~same].mean() < 0.7
    assert len(cosines.unique(dim=0)) == 64  # no two channels alike


def test_a_dead_channel_has_a_gradient_that_is_finite() -> None:
    maps = torch.rand(4, 8, 2, 2, dtype=torch.float64)
    maps[:, 3] = 0
    maps.requires_grad_()
    for loss in (facemae.grouping_loss, facemae.official_grouping_loss):
        (gradient,) = torch.autograd.grad(loss(facemae.channel_cosines(maps), 2), maps)
        assert gradient.isfinite().all()
        assert gradient.any()


def test_the_factor_of_the_mask_is_one_and_has_the_slope_of_the_score() -> None:
    generator = np.random.default_rng(0)
    scores, weights = generator.normal(size=(3, 9)), generator.normal(size=(3, 9))

    def soft(a: np.ndarray) -> float:
        normal = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-6)
        return float((weights / (1 + np.exp(-normal))).sum())

    x = torch.from_numpy(scores).requires_grad_()
    factors = facemae.straight_through(x)
    assert torch.equal(factors, torch.ones_like(x))
    (factors * torch.from_numpy(weights)).sum().backward()
    for i, j in np.ndindex(scores.shape):
        step = np.zeros_like(scores)
        step[i, j] = 1e-5
        slope = (soft(scores + step) - soft(scores - step)) / 2e-5
        assert x.grad[i, j].item() == pytest.approx(slope, abs=1e-8)


# --- the autoencoder -----------------------------------------------------------------------------------------


NORM = partial(nn.LayerNorm, eps=1e-6)


def of_timm(blocks: nn.Sequential, width: int, heads: int) -> nn.Sequential:
    """timm's blocks, as MAE has them, with the weights of ours."""
    twins = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=NORM) for _ in blocks)).double()
    for ours, theirs in zip(blocks, twins, strict=True):
        attention = ours.self_attention
        names = {
            "norm1": ours.ln_1,
            "norm2": ours.ln_2,
            "attn.proj": attention.out_proj,
            "mlp.fc1": ours.mlp[0],
            "mlp.fc2": ours.mlp[3],
        }
        state = {f"{key}.{p}": x for key, part in names.items() for p, x in part.state_dict().items()}
        state |= {"attn.qkv.weight": attention.in_proj_weight, "attn.qkv.bias": attention.in_proj_bias}
        theirs.load_state_dict(state)
    return twins


def plain_positions(width: int, side: int) -> np.ndarray:
    """A number at a time."""
    table = np.zeros((side, side, width))
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                rate = 1 / 10000 ** (i / quarter)
                entries = [math.sin(column * rate), math.cos(column * rate)]
                entries += [math.sin(row * rate), math.cos(row * rate)]
                table[row, column, i::quarter] = entries
    return table.reshape(side**2, width)


def test_the_autoencoder_is_mae() -> None:
    """Against timm's blocks, and MAE's way of leaving out and putting back."""
    method = build("official")
    encoder, decoder = method.encoder, method.decoder
    whole = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    kept = torch.stack([torch.randperm(PATCHES)[:KEPT] for _ in range(3)])
    painted = decoder(encoder(facemae.take(facemae.patchify(whole, PATCH), kept), kept), kept)

    place = torch.from_numpy(plain_positions(16, 4)), torch.from_numpy(plain_positions(8, 4))
    for sample in range(3):
        blocks = view_as_blocks(whole[sample].numpy(), (3, PATCH, PATCH))[0].reshape(PATCHES, -1)
        visible = kept[sample].tolist()
        tokens = [encoder.cls_token[0, 0]]
        tokens += [encoder.embed(torch.from_numpy(blocks[n])) + place[0][n] for n in visible]
        seen = encoder.norm(of_timm(encoder.blocks, 16, 2)(torch.stack(tokens)[None]))[0]
        first, *rest = decoder.embed(seen)
        every = [decoder.mask_token[0, 0]] * PATCHES
        for n, token in zip(visible, rest, strict=True):
            every[n] = token
        every = [first, *(token + place[1][n] for n, token in enumerate(every))]
        wanted = decoder.norm(of_timm(decoder.blocks, 8, 2)(torch.stack(every)[None]))
        wanted = decoder.pixels(wanted)[0, 1:]
        torch.testing.assert_close(painted[sample], wanted, atol=1e-6, rtol=1e-6)


def test_patches_become_the_picture_again() -> None:
    whole = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(facemae.unpatchify(facemae.patchify(whole, PATCH), PATCH), whole)


def test_the_sizes_of_the_released_code() -> None:
    """Its 197.6 million parameters, module by module; 64,000 of them are MAE's positions, constants here."""
    crops = (CropConfig(count=2, size=224, scale=(0.08, 1)), CropConfig(count=1, size=112, plain=True))
    method = SimFLEConfig(name="simfle").build(
        Setting(
            backbones.build("resnet50"), ViewsConfig(crops=crops), DataConfig(path="nowhere"), 256, ALONE, 0
        )
    )

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    gfl = method.gfl
    assert (
        count(method.backbone, gfl.projector) == count(gfl.target_backbone, gfl.target_projector) == 32957760
    )
    places = [x.numel() for module in (method.encoder, method.decoder) for x in module.buffers()]
    assert count(method.encoder, method.decoder) + sum(places) + 768 + 512 == 111719680  # + the class token's
    assert count(method.grouping) == 4200448
    assert [count(x) for x in (gfl.predictor, method.global_head, method.fine_head)] == [
        2109696,
        9449728,
        4206848,
    ]
    assert count(method) + 64000 == 197601920
    assert (method._patches, method._kept) == (49, 12)


# --- what trains what ----------------------------------------------------------------------------------------

SIMILARITY = {"backbone", "projector", "predictor"}
REACHED = {
    "official": {
        "similarity": SIMILARITY,
        "reconstruction": {"encoder", "decoder"},
        "distillation": {"backbone", "encoder", "global_head", "fine_head"},
        "grouping": {"grouping"},
    },
    "paper": {
        "similarity": SIMILARITY,
        "reconstruction": {"grouping", "encoder", "decoder"},
        "distillation": {"backbone", "grouping", "encoder", "global_head", "fine_head"},
        "grouping": {"grouping"},
    },
    "direct": {
        "similarity": SIMILARITY,
        "reconstruction": {"backbone", "grouping", "encoder", "decoder"},
        "grouping": {"backbone", "grouping"},
    },
    "random": {
        "similarity": SIMILARITY,
        "reconstruction": {"encoder", "decoder"},
        "distillation": {"backbone", "encoder", "global_head", "fine_head"},
    },
}


@pytest.mark.parametrize("name", REACHED)
def test_what_each_loss_trains(name: str) -> None:
    method = build(name)
    large, whole = flat(0, method)
    features = method.backbone(large)
    parts = {"similarity": method.gfl.loss(features, large, moment(0))}
    parts |= method._fine_grained(SMALL, features, whole, moment(0))
    modules = dict(method.gfl.named_children()) | dict(method.named_children())
    del modules["gfl"]
    found = {}
    for part, loss in parts.items():
        found[part] = set()
        for module, network in modules.items():
            weights = [p for p in network.parameters() if p.requires_grad]
            gradients = (
                torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True) if weights else []
            )
            if any(g is not None and g.abs().max() > 1e-12 for g in gradients):
                found[part].add(module)
    assert found == REACHED[name]


def test_statistics_are_those_of_views_and_of_the_picture() -> None:
    method = build("official")
    method(flat(0, method), moment(0))
    assert int(method.backbone.bn1.num_batches_tracked) == 2
    assert int(method.gfl.target_backbone.bn1.num_batches_tracked) == 1


def test_the_target_keeps_99_hundredths_where_official() -> None:
    released = {"momentum": 0.99, "momentum_schedule": "constant"}
    assert SimFLEConfig(name="simfle").gfl == BYOLConfig(**released)
    assert SimFLEConfig(name="simfle", variant="paper").gfl == BYOLConfig()
    for touched in ({"hidden_dim": 8}, {"name": "byol", "hidden_dim": 8}):
        assert SimFLEConfig(name="simfle", gfl=touched).gfl == BYOLConfig(hidden_dim=8, **released)
        assert SimFLEConfig(name="simfle", variant="paper", gfl=touched).gfl == BYOLConfig(hidden_dim=8)
    assert SimFLEConfig(name="simfle", gfl={"momentum": 0.9}).gfl == BYOLConfig(
        momentum=0.9, momentum_schedule="constant"
    )
    assert SimFLEConfig(name="simfle", gfl={"momentum_schedule": "cosine"}).gfl == BYOLConfig(momentum=0.99)
    assert SimFLEConfig(name="simfle", gfl={"name": "moco", "symmetric": True}).gfl.momentum == 0.999
    method = build("official")
    before = method.gfl.target_projector[0].weight.clone()
    step_of(method, method, optimizer_of(method), pictures(0, method), moment(0))
    expected = 0.9 * before + 0.1 * method.gfl.projector[0].weight
    torch.testing.assert_close(method.gfl.target_projector[0].weight, expected)


def test_the_predictors_rate_stays_where_the_global_branch_is_simsiam() -> None:
    method = build("simsiam")
    assert {id(p) for p in method.unscheduled()} == {id(p) for p in method.gfl.predictor.parameters()}
    assert build("official").unscheduled() == []


def test_every_network_is_compiled() -> None:
    method = build("official")
    method.compile_networks()
    followers = {"target_backbone", "target_projector"}
    for name, network in (*method.gfl.named_children(), *method.named_children()):
        assert (network._compiled_call_impl is not None) is (name != "gfl"), name
        followers.discard(name)
    assert not followers


# --- masks ---------------------------------------------------------------------------------------------------


def rows(step: int, *numbers: int) -> Moment:
    """At a step, with these samples."""
    return Moment(step, 2, STEPS, 0, np.array(numbers))


@pytest.mark.parametrize("name", ["official", "paper", "random"])
def test_a_mask_is_a_function_of_step_and_row(name: str) -> None:
    method = build(name).eval()
    whole = pictures(0, method)[1][0]
    kept, painted = method.reconstruct(whole, moment(3))
    assert kept.shape == (BATCH, PATCHES)
    assert (kept.sum(1) == KEPT).all()
    order = [5, 2, 7]
    again = method.reconstruct(whole[order], rows(3, *order))
    assert torch.equal(again.kept, kept[order])
    torch.testing.assert_close(again.pictures, painted[order])
    many = method.reconstruct(whole[:1].expand(64, -1, -1, -1), rows(3, *range(64))).kept
    assert len(many.unique(dim=0)) in (range(50, 65) if name == "random" else range(2, GROUPS + 1))
    assert not torch.equal(method.reconstruct(whole, moment(4)).kept, kept)


@pytest.mark.parametrize("name", ["official", "paper"])
def test_reconstructed_pictures_keep_what_was_seen(name: str) -> None:
    method = build(name).eval()
    whole = pictures(0, method)[1][0]
    kept, painted = method.reconstruct(whole, moment(0))
    seen = (
        kept.view(-1, 4, 4).repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)[:, None].expand_as(whole)
    )
    assert torch.equal(painted[seen], whole[seen])
    assert (painted[~seen] - whole[~seen]).abs().mean() > 0.1
    if name == "official":  # no longer in units of each patch
        method.decoder.pixels.weight.data.zero_()
        flat_patches = facemae.patchify(method.reconstruct(whole, moment(0)).pictures, PATCH)
        means = facemae.patchify(whole, PATCH).mean(2, keepdim=True)
        torch.testing.assert_close(flat_patches[~kept], means.expand_as(flat_patches)[~kept])


@pytest.mark.parametrize("dead", [0, 1, GROUPS])
def test_masks_that_position_decides_are_counted(dead: int) -> None:
    """A group whose channels no picture passes has no score to choose by."""
    method, step = build("official"), 3
    with torch.no_grad():
        method.grouping.norm.bias[: dead * 64 // GROUPS] = -100
    method(flat(0, method), moment(step))
    drawn = uniforms(0, step, 3 << 20, np.arange(BATCH), 1)[:, 0] * GROUPS
    expected = np.mean(drawn.astype(int) < dead)
    assert method.indicators()["mask_ties"].item() == pytest.approx(expected)
    assert expected == (dead > 1) or (dead == 1 and 0 < expected < 1)
    tops = method.eval().reconstruct(flat(0, method)[1], moment(step)).kept[:, :KEPT].all(1)
    assert tops.double().mean() >= expected


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crops", "settings", "reason"),
    [
        ((VIEWS,), {}, r"views\.crops: .* add \{count: 1, size: 112, plain: true\}"),
        ((VIEWS, PLAIN, PLAIN), {}, r"views\.crops: SimFLE reconstructs one whole picture a sample"),
        ((PLAIN, VIEWS), {}, r"views\.crops: SimFLE compares two views"),
        (
            (VIEWS, PLAIN, FEW),
            VARIANTS["simclr"],
            r"views\.crops: with simclr SimFLE compares two views; take out",
        ),
        (
            (VIEWS, PLAIN.model_copy(update={"size": 60})),
            {},
            r"method\.facemae\.patch: 16 does not divide the plain crop's 60",
        ),
        (
            (),
            {"facemae": SMALL.model_copy(update={"groups": 5})},
            r"method\.facemae\.groups: 5 does not divide the backbone's 64 channels",
        ),
        (
            (),
            {"facemae": SMALL.model_copy(update={"masked": 0.99})},
            r"method\.facemae\.masked: 0\.99 leaves none of the 16 patches",
        ),
        (
            (),
            {"gfl": {"name": "moco", "symmetric": True, "queue_length": 24}},
            r"method\.gfl\.queue_length: 24 is not a multiple of the 16 keys",
        ),
        ((), {"facemae": None}, r"views\.crops: without method\.facemae nothing looks at the plain crop"),
    ],
)
def test_what_cannot_be_built(crops: tuple, settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config("official", **settings).build(setting(*crops))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"connection": "direct"},
            "connection: direct needs a mask that has a gradient; write variant: paper",
        ),
        (
            {"connection": "direct", "variant": "paper", "masking": "random"},
            "connection: direct needs a mask",
        ),
        ({"gfl": {"name": "moco"}}, "gfl.symmetric: SimFLE compares both views .* write symmetric: true"),
        (
            {"facemae": {"encoder_width": 100, "encoder_heads": 12}},
            "encoder_width: 100 must be a multiple of 4 and",
        ),
    ],
)
def test_settings_that_contradict_one_another(settings: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config("official", **settings)


# --- ranks, and runs that are killed -------------------------------------------------------------------------


def _steps(place: Ranks, name: str) -> list:
    method = build(name, place)
    distributed.synchronise_batch_norm(method, place, "global")
    model, optimizer = distributed.data_parallel(method), optimizer_of(method)
    losses = []
    for number in range(2):
        mine = [group.chunk(place.world, 1)[place.rank] for group in pictures(number, method)]
        losses.append(step_of(method, model, optimizer, mine, moment(number, place)))
    mean = distributed.all_reduce(torch.tensor(losses, dtype=torch.float64)) / place.world
    return [*mean.tolist(), *(_fingerprint(value) for value in method.state_dict().values())]


def _fingerprint(x: torch.Tensor) -> float:
    """One number that every entry has a part in; half a million of them would take their time."""
    return float(x.double().flatten() @ torch.cos(torch.arange(x.numel(), dtype=torch.float64)))


def _all_steps(place: Ranks) -> dict:
    return {name: _steps(place, name) for name in VARIANTS if name not in ("simsiam", "alone")}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(world: int) -> None:
    expected = _all_steps(ALONE)
    for found in in_ranks(world, _all_steps):
        assert found.keys() == expected.keys()
        for name, numbers in expected.items():
            assert abs(numbers[0] - numbers[1]) > 1e-3, "nothing was learnt that could differ"
            np.testing.assert_allclose(found[name], numbers, atol=1e-9, rtol=1e-9, err_msg=name)


def test_what_is_trained_is_the_same_on_any_number_of_ranks() -> None:
    method = build("official")
    before = {key: p.requires_grad for key, p in method.named_parameters()}
    distributed.synchronise_batch_norm(method, Ranks(0, 2, 0, 2, ALONE.device), "global")
    assert isinstance(method.gfl.target_backbone.bn1, distributed.SyncBatchNorm)
    assert {key: p.requires_grad for key, p in method.named_parameters()} == before


RUN = """
epochs: 4
batch_size: 16
device: cpu
views:
  crops:
    - {count: 2, size: 32, scale: [0.5, 1.0]}
    - {count: 1, size: 64, plain: true}
    - {count: 1, size: 24, scale: [0.2, 0.5]}
backbone: {architecture: resnet18, width: 0.25}
method:
  name: simfle
  variant: paper
  gfl: {name: byol, hidden_dim: 16, projection_dim: 8, momentum: 0.9}
  facemae: {groups: 8, encoder_width: 16, encoder_depth: 2, encoder_heads: 2, decoder_width: 8, decoder_depth: 1,
            decoder_heads: 2}
  hidden_dim: 16
  projection_dim: 8
optimizer: {name: sgd, weight_decay: 5e-4}
schedule: {lr: 0.05, warmup_epochs: 1}
checkpoint: {every_steps: 7}
log_every_steps: 3
"""


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_backbone(beton_path, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    part = killed_and_gone_on(path, beton_path, tmp_path)
    row = json.loads((part / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"similarity", "reconstruction", "distillation", "grouping", "feature_std"} <= set(row)


def test_a_run_without_the_whole_picture_is_one_line(beton_path, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.replace("    - {count: 1, size: 64, plain: true}\n", ""))
    Run(path, beton_path, tmp_path / "run").refuse(
        "views.crops: SimFLE reconstructs one whole picture a sample"
    )


# --- the recipes ---------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
# The rows of the table in docs/pretrain.md: | what | accuracy | printed G | our G | `overrides` |
ABLATIONS = re.findall(
    r"^\| .* \| `('?(?:method|backbone)[.=].*)` \|$",
    (ROOT / "docs/pretrain.md").read_text(),
    flags=re.MULTILINE,
)


def built(recipe: str, *overrides: str) -> SimFLE:
    """Without memory for its weights."""
    read = load(ROOT / "configs/pretrain" / recipe, overrides, schema=PretrainConfig)
    with torch.device("meta"):
        network = backbones.build(read.backbone.architecture, read.backbone.width)
        return read.method.build(Setting(network, read.views, read.data, read.batch_size, ALONE, 0))


@pytest.mark.parametrize("recipe", ["simfle", "simfle_resnet101", "simfle_64gpu", "demo_simfle"])
def test_every_recipe_can_be_built(recipe: str) -> None:
    assert built(f"{recipe}.yaml").config.facemae


def test_what_is_handed_off_names_the_size_of_the_views(beton_path, tmp_path) -> None:
    """Not that of the whole picture, which is larger in the demo: an evaluation takes pictures of this size."""
    recipe, target = ROOT / "configs/pretrain/demo_simfle.yaml", tmp_path / "backbone.safetensors"
    read = load(recipe, [f"data.path={beton_path}"], schema=PretrainConfig)
    train._hand_off(read, target, backbones.random("resnet18", 1.0, seed=0), 3)
    assert backbones.read_header(target)["image_size"] == "48"


def test_what_is_trained_on_is_what_is_named() -> None:
    """The commands in the headers prepare the new release, where every recipe and evaluation of SimFLE's looks."""
    found = []
    for path in ("pretrain/simfle.yaml", "downstream/simfle_linear.yaml"):
        header = (ROOT / "configs" / path).read_text().replace("\\\n#", "")
        (command,) = re.findall(
            r"^# +python -m data_prep (configs/data/affectnet\.yaml .*)$", header, flags=re.MULTILINE
        )
        recipe, *overrides = shlex.split(command)
        found.append(load(ROOT / recipe, overrides, schema=DataPrepConfig))
    prepared, again = found
    assert prepared == again
    assert prepared.source.release == "new"
    assert f"{287_651:,} pictures" in (ROOT / "configs/pretrain/parts/affectnet.yaml").read_text()
    assert next(p.count for p in PUBLISHED_NEW if p.prefix == "train_set/") == 287_651
    recipes = [*(ROOT / "configs/pretrain").glob("affectnet_*.yaml"), ROOT / "configs/pretrain/simfle.yaml"]
    sets = {(read.data.path, read.data.rows) for read in (load(r, schema=PretrainConfig) for r in recipes)}
    assert sets == {(f"{prepared.output}/set.beton", f"{prepared.output}/train.npy")}
    assert (
        f"subset {prepared.output}/set.beton {prepared.output}/train.npy --where split=train"
        in recipes[-1].read_text()
    )
    for name in ("linear", "semi", "finetune"):
        read = load(ROOT / f"configs/downstream/simfle_{name}.yaml", schema=DownstreamConfig)
        assert read.data == f"{prepared.output}/set.beton"


def test_every_row_of_the_ablations_can_be_built_and_is_another_one() -> None:
    assert len(ABLATIONS) >= 10
    found = [built("simfle.yaml", *shlex.split(row)) for row in ABLATIONS]
    described = [(x.config.model_dump_json(), len(list(x.backbone.modules()))) for x in found]
    assert len(set(described)) == len(ABLATIONS)


@pytest.mark.parametrize("row", ABLATIONS)
def test_the_settings_that_a_run_leaves_are_a_config_again(row: str, beton_path, tmp_path) -> None:
    """So that the ``config.yaml`` of a run gives its cost to a table."""
    words = [*shlex.split(row), f"data.path={beton_path}", "data.rows=null"]
    read = load(ROOT / "configs/pretrain/simfle.yaml", words, schema=PretrainConfig)
    train._note_settings(read, tmp_path)
    assert load(tmp_path / "config.yaml", schema=PretrainConfig) == read
