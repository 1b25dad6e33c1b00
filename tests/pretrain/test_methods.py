"""The methods over two views: losses against their equations, ranks against one process, runs that are killed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from configs import ConfigError, load
from pretrain import backbones, distributed
from pretrain.data import DataConfig
from pretrain.distributed import Ranks
from pretrain.lars import SGD, SGDConfig
from pretrain.methods import METHODS, Method, Moment, Setting
from pretrain.train import PretrainConfig
from pretrain.views import CropConfig, ViewsConfig, uniforms
from tests.pretrain.runs import ROOT, killed_and_gone_on
from tests.pretrain.test_distributed import CPU, in_ranks

ALONE = Ranks(0, 1, 0, 1, CPU)
BATCH, STEPS = 8, 4
TINY = {
    "byol": {"hidden_dim": 16, "projection_dim": 8, "momentum": 0.9},
    "simsiam": {"hidden_dim": 6, "projection_dim": 12},
    "barlow_twins": {"projection_dim": 10, "redundancy": 0.05},
    "simclr": {"hidden_dim": 12, "projection_dim": 6},
    "moco": {"projection_dim": 6, "queue_length": 32, "momentum": 0.9},
    "moco symmetric": {"projection_dim": 6, "queue_length": 32, "momentum": 0.9, "symmetric": True},
    "moco linear": {"projection_dim": 6, "queue_length": 24, "head": "linear", "temperature": 0.2},
}


def build(name: str, place: Ranks = ALONE, **settings: object) -> Method:
    """In float64, with first weights that depend on nothing else."""
    kind = name.split()[0]
    config = METHODS[kind](name=kind, **{**TINY[name], **settings})
    torch.manual_seed(0)
    return config.build(setting(place)).double()


def setting(
    place: Ranks = ALONE, *, count: int = 2, plain: bool = False, further: tuple[CropConfig, ...] = ()
) -> Setting:
    """Of a small network."""
    crop = CropConfig(count=count, size=32, plain=plain, scale=None if plain else (0.2, 1))
    views, data = ViewsConfig(crops=(crop, *further)), DataConfig(path="nowhere")
    return Setting(backbones.build("resnet18", 0.125), views, data, BATCH, place, 0)


def moment(step: int, place: Ranks = ALONE) -> Moment:
    """Of the run; a method that has need of it draws by the rows."""
    return Moment(step, 2, STEPS, 0, np.array_split(np.arange(BATCH), place.world)[place.rank])


def views(step: int) -> torch.Tensor:
    """(2, BATCH, 3, 32, 32) of all ranks."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)


def step_of(
    method: Method, model: nn.Module, optimizer: SGD, pictures: list[torch.Tensor], now: Moment
) -> float:
    """One step as the engine does it, on one (V, B, 3, s, s) tensor a resolution; the loss."""
    loss = model([group.flatten(0, 1) for group in pictures], now)
    optimizer.zero_grad()
    loss.backward()
    method.after_backward(now)
    optimizer.step()
    method.after_step(now)
    return loss.item()


def optimizer_of(method: Method) -> SGD:
    """For what a gradient reaches."""
    return SGD([p for p in method.parameters() if p.requires_grad], SGDConfig(weight_decay=1e-3), lr=0.02)


# --- the losses, from the equations --------------------------------------------------------------------------


def unit(x: torch.Tensor) -> np.ndarray:
    """Rows of length 1."""
    array = x.detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_byol_is_equation_2() -> None:
    method, pictures = build("byol"), views(0).flatten(0, 1)
    loss = method([pictures], moment(0)).item()
    twin = build("byol")
    q = twin.predictor(twin.projector(twin.backbone(pictures))).detach().numpy()
    z = twin.target_projector(twin.target_backbone(pictures)).detach().numpy()
    total = 0.0
    for one, two in ((0, 1), (1, 0)):
        for i in range(BATCH):
            p, t = q[one * BATCH + i], z[two * BATCH + i]
            total += np.sum((p / np.linalg.norm(p) - t / np.linalg.norm(t)) ** 2) / BATCH
    assert loss == pytest.approx(total, abs=1e-9)


def test_simsiam_is_equation_2() -> None:
    method, pictures = build("simsiam"), views(0).flatten(0, 1)
    loss = method([pictures], moment(0)).item()
    twin = build("simsiam")
    z = twin.projector(twin.backbone(pictures))
    p, z = unit(twin.predictor(z)).reshape(2, BATCH, -1), unit(z).reshape(2, BATCH, -1)
    expected = -(np.sum(p[0] * z[1], 1).mean() + np.sum(p[1] * z[0], 1).mean()) / 2
    assert loss == pytest.approx(expected, abs=1e-9)


def test_barlow_twins_is_equation_1() -> None:
    method, pictures = build("barlow_twins"), views(0).flatten(0, 1)
    loss = method([pictures], moment(0)).item()
    twin = build("barlow_twins")
    one, two = twin.projector(twin.backbone(pictures)).detach().numpy().reshape(2, BATCH, -1)
    one, two = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (one, two))
    expected = 0.0
    for i in range(one.shape[1]):
        for j in range(one.shape[1]):
            c = np.mean(one[:, i] * two[:, j])
            expected += (1 - c) ** 2 if i == j else 0.05 * c**2
    assert loss == pytest.approx(expected, abs=1e-9)


def test_simclr_is_equation_1() -> None:
    method, pictures = build("simclr"), views(0).flatten(0, 1)
    loss = method([pictures], moment(0)).item()
    twin = build("simclr")
    z, expected = unit(twin.projector(twin.backbone(pictures))), 0.0
    for i in range(2 * BATCH):
        partner = (i + BATCH) % (2 * BATCH)
        others = sum(math.exp(z[i] @ z[k] / 0.1) for k in range(2 * BATCH) if k != i)
        expected -= math.log(math.exp(z[i] @ z[partner] / 0.1) / others) / (2 * BATCH)
    assert loss == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["moco", "moco linear", "moco symmetric"])
def test_moco_is_equation_1(name: str) -> None:
    method, pictures = build(name), views(0).flatten(0, 1)
    queue = method.queue.clone().numpy()
    loss = method([pictures], moment(0)).item()
    twin, expected = build(name), []
    one, two = pictures[:BATCH], pictures[BATCH:]
    # The views that are queries go through one normalisation together; keys do one view at a time.
    asked = twin.backbone(pictures if "symmetric" in name else one)
    queries = unit(twin.projector(asked))
    keys = np.concatenate([unit(twin.key_projector(twin.key_backbone(x))) for x in (two, one)])
    for query, key in zip(queries, keys, strict=False):
        positive = math.exp(query @ key / 0.2)
        expected.append(-math.log(positive / (positive + np.exp(queue @ query / 0.2).sum())))
    assert loss == pytest.approx(np.mean(expected), abs=1e-9)


# --- what must hold ------------------------------------------------------------------------------------------


def test_every_method_has_its_tests() -> None:
    elsewhere = {"swav", "supervised", "simfle"}
    assert {name.split()[0] for name in TINY} | elsewhere == set(METHODS)


@pytest.mark.parametrize("name", TINY)
def test_where_gradients_arrive(name: str) -> None:
    """In all that is trained, and in nothing that follows."""
    method = build(name)
    method([views(0).flatten(0, 1)], moment(0)).backward()
    followers = ("target_", "key_")
    for key, parameter in method.named_parameters():
        assert parameter.requires_grad is not key.startswith(followers), key
        assert (parameter.grad is not None) is parameter.requires_grad, key
    moved = {key.split(".")[0] for key, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved >= {"backbone", "projector"}


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_the_follower_follows_exactly(name: str) -> None:
    method = build(name)
    pair = ("target", "backbone") if name == "byol" else ("key", "backbone")
    followed, own = getattr(method, "_".join(pair)), method.backbone
    optimizer, expected = optimizer_of(method), [p.clone().numpy() for p in followed.parameters()]
    for number in range(STEPS):
        step_of(method, method, optimizer, [views(number)], moment(number))
        m = 0.9
        if name == "byol":  # the cosine from tau to 1
            m = 1 - 0.1 * (math.cos(math.pi * number / STEPS) + 1) / 2
        expected = [
            m * e + (1 - m) * p.detach().numpy() for e, p in zip(expected, own.parameters(), strict=True)
        ]
    for found, wanted in zip(followed.parameters(), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(followed.parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_the_follower_normalises_by_its_own_batches(name: str) -> None:
    method = build(name)
    followed = method.target_backbone if name == "byol" else method.key_backbone
    method([views(0).flatten(0, 1)], moment(0))
    assert int(followed.bn1.num_batches_tracked) == int(method.backbone.bn1.num_batches_tracked) == 1
    # BYOL's networks see both views; of MoCo's the one sees the first and the other the second.
    assert torch.equal(followed.bn1.running_mean, method.backbone.bn1.running_mean) is (name == "byol")


def test_the_queue_holds_the_newest_keys_first_and_none_of_the_batch_at_hand() -> None:
    method = build("moco")
    first = method.queue.clone()
    keys = []
    for number in range(5):
        before = method.queue.clone()
        method([views(number).flatten(0, 1)], moment(number))
        assert torch.equal(method.queue[BATCH:], before[:-BATCH])
        keys.append(method.queue[:BATCH].clone())
        assert not torch.isin(keys[-1], before).any()
        torch.testing.assert_close(keys[-1].norm(dim=1), torch.ones(BATCH, dtype=torch.float64))
    assert torch.equal(method.queue, torch.cat(keys[:0:-1]))
    assert not torch.isin(method.queue, first).any()


def test_the_predictors_rate_stays() -> None:
    method = build("simsiam")
    assert {id(p) for p in method.unscheduled()} == {id(p) for p in method.predictor.parameters()}
    assert build("simsiam", constant_predictor_rate=False).unscheduled() == []


@pytest.mark.parametrize("name", TINY)
def test_views_that_are_no_pairs_are_refused(name: str) -> None:
    config = METHODS[name.split()[0]](name=name.split()[0], **TINY[name])
    for wrong in (setting(count=1), setting(count=3), setting(plain=True)):
        with pytest.raises(ConfigError, match=r"views\.crops: .* compares two views of a picture"):
            config.build(wrong)


@pytest.mark.parametrize("name", TINY)
def test_two_views_may_be_crops_of_their_own(name: str) -> None:
    """BYOL's differ in blur and solarization; to a method they are the pair that one crop makes."""
    kind, (one, two) = name.split()[0], views(0)
    half = CropConfig(count=1, size=32, scale=(0.2, 1))
    apart = replace(setting(), views=ViewsConfig(crops=(half, half.model_copy(update={"solarize": 0.2}))))
    METHODS[kind](name=kind, **TINY[name]).build(apart)
    together = build(name)([views(0).flatten(0, 1)], moment(0))
    assert torch.equal(build(name)([one, two], moment(0)), together)
    other = half.model_copy(update={"size": 24})
    with pytest.raises(ConfigError, match=r"views\.crops: .* compares two views of a picture"):
        METHODS[kind](name=kind, **TINY[name]).build(replace(apart, views=ViewsConfig(crops=(half, other))))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "crop", [CropConfig(count=4, size=24, scale=(0.1, 0.2)), CropConfig(count=1, size=64, plain=True)]
)
def test_views_that_nothing_looks_at_are_refused(name: str, crop: CropConfig) -> None:
    config = METHODS[name.split()[0]](name=name.split()[0], **TINY[name])
    with pytest.raises(ConfigError, match=r"views\.crops: .* does not look at crops after its two views"):
        config.build(setting(further=(crop,)))


def test_a_queue_that_the_keys_do_not_fill_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"queue_length: 22 is not a multiple of the 8 keys of a step; write 24"
    ):
        build("moco", queue_length=22)
    with pytest.raises(
        ConfigError, match=r"queue_length: 3 is not a multiple of the 8 keys of a step; write 8"
    ):
        build("moco", queue_length=3)
    with pytest.raises(ConfigError, match=r"queue_length: 24 is not a multiple of the 16 keys"):
        build("moco symmetric", queue_length=24)


# --- several ranks -------------------------------------------------------------------------------------------


def _steps(place: Ranks, name: str) -> list:
    method = build(name, place)
    distributed.synchronise_batch_norm(method, place, "global")
    model, optimizer = distributed.data_parallel(method), optimizer_of(method)
    losses = []
    for number in range(STEPS):
        mine = views(number).chunk(place.world, 1)[place.rank]
        losses.append(step_of(method, model, optimizer, [mine], moment(number, place)))
    mean = distributed.all_reduce(torch.tensor(losses, dtype=torch.float64)) / place.world
    return [mean.tolist(), *(value.tolist() for value in method.state_dict().values())]


def _all_steps(place: Ranks) -> dict:
    return {name: _steps(place, name) for name in TINY}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_equal_one_process(world: int) -> None:
    expected = _all_steps(ALONE)
    for found in in_ranks(world, _all_steps):
        for name in TINY:
            losses = expected[name][0]
            assert losses[-1] != pytest.approx(losses[0], abs=1e-3), "nothing was learnt that could differ"
            for ours, theirs in zip(found[name], expected[name], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", TINY)
def test_what_is_trained_is_the_same_on_any_number_of_ranks(name: str) -> None:
    """A follower that began to be trained would not fit the optimiser of a checkpoint of one rank."""
    method = build(name)
    before = {key: (id(p), p.requires_grad) for key, p in method.named_parameters()}
    distributed.synchronise_batch_norm(method, Ranks(0, 2, 0, 2, CPU), "global")
    assert any(isinstance(module, distributed.SyncBatchNorm) for module in method.modules())
    assert {key: (id(p), p.requires_grad) for key, p in method.named_parameters()} == before
    if name in ("byol", "moco"):
        assert not all(trained for _, trained in before.values())


def _shuffled(place: Ranks) -> list:
    """The keys of a step, each rank with statistics of its own."""
    method = build("moco", place)
    pictures = views(0).chunk(place.world, 1)[place.rank].flatten(0, 1)
    method([pictures], moment(3))
    return [method.queue[:BATCH].tolist(), method.key_backbone.bn1.running_mean.tolist()]


def test_shuffled_batch_norm_equals_one_process_that_splits_the_shuffled_batch() -> None:
    world = 4
    found = in_ranks(world, _shuffled)
    twin, pictures = build("moco"), views(0)[1]
    drawn = distributed_order(moment(3))
    keys = torch.empty(BATCH, 6, dtype=torch.float64)
    for part in np.array_split(drawn, world):
        keys[part] = torch.from_numpy(unit(twin.key_projector(twin.key_backbone(pictures[part]))))
    for ours, _ in found:
        np.testing.assert_allclose(ours, keys.numpy(), atol=1e-9)
    plain = [unit(twin.key_projector(twin.key_backbone(x))) for x in pictures.chunk(world)]
    assert np.abs(np.concatenate(plain) - keys.numpy()).max() > 1e-3
    means = [mean for _, mean in found]
    assert not np.allclose(means[0], means[1])


def distributed_order(now: Moment) -> np.ndarray:
    """The order in which all ranks' pictures are normalised."""
    return np.argsort(uniforms(now.seed, now.step, 2 << 20, np.arange(BATCH), 1)[:, 0], kind="stable")


# --- runs ----------------------------------------------------------------------------------------------------

RUN = """
epochs: 4
batch_size: 16
device: cpu
views:
  crops:
    - {count: 2, size: 32, scale: [0.5, 1.0]}
backbone: {architecture: resnet18, width: 0.25}
optimizer: {name: sgd, weight_decay: 5e-4}
schedule: {lr: 0.05, warmup_epochs: 1}
checkpoint: {every_steps: 7}
log_every_steps: 3
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if " " not in name])
def test_a_killed_run_ends_with_the_same_backbone(name: str, beton_path, tmp_path) -> None:
    method = ", ".join(f"{key}: {value}" for key, value in TINY[name].items())
    config = tmp_path / "run.yaml"
    config.write_text(f"{RUN}method: {{name: {name}, {method}}}\n")
    killed_and_gone_on(config, beton_path, tmp_path)


# --- the recipes ---------------------------------------------------------------------------------------------

RIVALS = ["byol", "simsiam", "moco", "moco_v2", "simclr", "barlow_twins"]


@pytest.mark.parametrize("name", RIVALS)
def test_the_methods_that_simfle_is_compared_with_share_its_recipe(name: str) -> None:
    rival, simfle = (
        load(ROOT / f"configs/pretrain/{recipe}.yaml", schema=PretrainConfig)
        for recipe in (f"affectnet_{name}", "simfle")
    )
    own = {"output", "method", "views"}
    assert rival.model_dump(exclude=own) == simfle.model_dump(exclude=own)
    assert rival.views == simfle.views.model_copy(update={"crops": simfle.views.crops[:1]})
    with torch.device("meta"):
        network = backbones.build(rival.backbone.architecture, rival.backbone.width)
        method = rival.method.build(Setting(network, rival.views, rival.data, rival.batch_size, ALONE, 0))
    assert rival.method.name == name.removesuffix("_v2")
    assert (
        sum(p.numel() for p in method.backbone.parameters()) == 23_508_032
    )  # ResNet-50 without its last layer
