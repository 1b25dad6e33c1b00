"""Supervised training: CosFace and cross-entropy against the equations, on one rank and on several."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import configs
from configs import ConfigError
from pretrain import backbones, distributed
from pretrain.distributed import Ranks
from pretrain.lars import SGD, SGDConfig
from pretrain.methods.method import Moment
from pretrain.methods.supervised import Supervised, SupervisedConfig, read_classes
from pretrain.train import PretrainConfig, _identity
from tests.pretrain.runs import Run, killed_and_gone_on
from tests.pretrain.test_distributed import CPU, in_ranks

ALONE = Ranks(0, 1, 0, 1, CPU)
BATCH, CLASSES, STEPS = 8, 11, 3
LABELS = np.array([0, 3, 10, 3, 7, 1, 1, 9, *range(CLASSES)])


def build(place: Ranks, **settings: object) -> Supervised:
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", 0.125)
    config = SupervisedConfig(name="supervised", **settings)
    return Supervised(backbone, config, LABELS, place, seed=5).double()


def moment(step: int, rows: np.ndarray) -> Moment:
    return Moment(step, 10, 30, seed=3, rows=rows)


def pictures(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def weights(method: Supervised) -> torch.Tensor:
    """The shard in float64: it is no parameter of the module, so double() does not reach it."""
    method._shard[0] = torch.nn.Parameter(method.weight.detach().double())
    return method.weight


def test_cosface_is_equation_4() -> None:
    method = build(ALONE, margin=0.35, scale=16)
    w = weights(method).detach().numpy()
    loss = method([pictures(0)], moment(0, np.arange(BATCH)))
    with torch.inference_mode():
        method.train()
        f = method.backbone(pictures(0)).numpy()
    total = 0.0
    for x, label in zip(f, LABELS[:BATCH], strict=True):
        cosines = [float(x @ c / np.linalg.norm(x) / np.linalg.norm(c)) for c in w]
        own = math.exp(16 * (cosines[label] - 0.35))
        others = sum(math.exp(16 * c) for i, c in enumerate(cosines) if i != label)
        total -= math.log(own / (own + others)) / BATCH
    assert loss.item() == pytest.approx(total, rel=1e-9)


def test_cross_entropy_and_its_gradients_are_torchs() -> None:
    method, views = build(ALONE, loss="cross_entropy"), pictures(1)
    w = weights(method)
    loss = method([views], moment(0, np.arange(BATCH)))
    loss.backward()
    ours = [w.grad, *(p.grad.clone() for p in method.parameters())]
    method.zero_grad()
    reference = w.detach().clone().requires_grad_()
    expected = F.cross_entropy(method.backbone(views) @ reference.T, torch.tensor(LABELS[:BATCH]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for mine, theirs in zip(ours, [reference.grad, *(p.grad for p in method.parameters())], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-9)
    assert method.loss_without_learning == pytest.approx(math.log(CLASSES))
    assert build(ALONE).loss_without_learning is None


def test_large_logits_do_not_overflow() -> None:
    method = build(ALONE, loss="cross_entropy")
    weights(method).data.mul_(1e6)
    assert math.isfinite(method([pictures(0)], moment(0, np.arange(BATCH))).item())


def _steps(place: Ranks, settings: dict) -> list:
    """Loss, classes, backbone and accuracy after some steps with DDP and momentum."""
    method = build(place, **settings)
    weights(method)
    distributed.synchronise_batch_norm(method, place, "global")
    model = distributed.data_parallel(method)
    optimizer = SGD([*method.parameters(), method.weight], SGDConfig(weight_decay=1e-3), lr=0.1)
    losses, accuracies = [], []
    for step in range(STEPS):
        rows = np.random.default_rng(step).permutation(len(LABELS))[:BATCH]
        mine = slice(place.rank, None, place.world)
        loss = model([pictures(step)[mine]], moment(step, rows[mine]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(method.indicators()["accuracy"].item())
    shards = torch.cat(distributed.gather(method.weight.detach()))[:CLASSES]
    return [losses, accuracies, shards.tolist(), *(v.tolist() for v in method.backbone.state_dict().values())]


@pytest.mark.parametrize(("world", "loss"), [(2, "cross_entropy"), (4, "cosface")])
def test_over_ranks_equals_one_process(world: int, loss: str) -> None:
    settings = {"loss": loss, "scale": 16.0}
    expected = _steps(ALONE, settings)
    assert expected[0][-1] != pytest.approx(expected[0][0], abs=1e-3), "nothing was learnt that could differ"
    for found in in_ranks(world, _steps, settings):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-9)


def _chosen(place: Ranks) -> list:
    method = build(place, sample_rate=0.5)
    labels = torch.tensor([0, 3, 10])
    found = [method._chosen(labels, moment(step, np.arange(3))) + method._first for step in range(20)]
    return [f.tolist() for f in found]


def test_sampled_classes_hold_those_of_the_batch_and_change_from_step_to_step() -> None:
    alone = _chosen(ALONE)
    for numbers in alone:
        assert {0, 3, 10} <= set(numbers)
        assert len(numbers) == round(0.5 * CLASSES)
        assert numbers == sorted(numbers)
    others = np.bincount(np.concatenate(alone), minlength=CLASSES)[[1, 2, 4, 5, 6, 7, 8, 9]]
    assert (others > 0).all()
    assert (others < 20).all()
    assert alone == _chosen(ALONE)  # drawn from seed, step and class alone
    first, second = in_ranks(2, _chosen)
    for one, two in zip(first, second, strict=True):
        assert max(one) < 6 <= min(two)
        assert {0, 3, 10} <= {*one, *two}


def test_with_samples_the_loss_sees_the_chosen_classes_only() -> None:
    method = build(ALONE, loss="cross_entropy", sample_rate=0.5)
    w = weights(method)
    now = moment(4, np.arange(BATCH))
    loss = method([pictures(2)], now)
    loss.backward()
    chosen = method._chosen(torch.tensor(LABELS[:BATCH]), now)
    assert set(w.grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(chosen.tolist())
    with torch.inference_mode():
        logits = method.backbone(pictures(2)) @ w[chosen].T
    own = torch.searchsorted(chosen, torch.tensor(LABELS[:BATCH]))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, own).item(), rel=1e-9)


def test_more_ranks_than_classes() -> None:
    settings = {"loss": "cross_entropy"}
    expected = _few_classes(ALONE, settings)
    for found in in_ranks(4, _few_classes, settings):
        np.testing.assert_allclose(found, expected, atol=1e-9)


def _few_classes(place: Ranks, settings: dict) -> list:
    torch.manual_seed(0)
    backbone = backbones.build("resnet18", 0.125)
    config = SupervisedConfig(name="supervised", **settings)
    method = Supervised(backbone, config, np.array([0, 1] * 4), place, seed=5).double()
    weights(method)
    distributed.synchronise_batch_norm(method, place, "global")
    mine = slice(place.rank, None, place.world)
    loss = method([pictures(0)[mine]], moment(0, np.arange(BATCH)[mine]))
    loss.backward()
    return [loss.item()]


# --- classes -------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path, beton_path: Path) -> Path:
    """The set of 96 pictures, with 12 people, whose numbers have gaps, and other columns."""
    for suffix in (".beton", ".json"):
        (tmp_path / f"set{suffix}").symlink_to(beton_path.with_suffix(suffix))
    people = np.repeat(np.arange(12) * 7 + 100, 8)
    columns = {
        "identity": people,
        "expression": pa.array([None, *(people[1:] % 3)], pa.int32()),
        "valence": np.linspace(-1, 1, 96),
        "text": [str(p) for p in people],
        "one": np.zeros(96, np.int64),
    }
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    return tmp_path / "set.beton"


def test_classes_are_numbered_without_a_gap(labelled: Path) -> None:
    assert read_classes(str(labelled), "identity", None).tolist() == np.repeat(np.arange(12), 8).tolist()
    rows = np.arange(8, 24)
    found = read_classes(str(labelled), "identity", rows)
    assert found[rows].tolist() == [0] * 8 + [1] * 8
    assert (found[24:] == -1).all()
    assert set(read_classes(str(labelled), "expression", np.arange(1, 96))) == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("expression", "1 of 96 pictures .* have no 'expression', the first is row 0"),
        ("valence", "have no 'valence'|holds fractions"),
        ("text", "is not a whole number a picture"),
        ("one", "all pictures .* have the same 'one'"),
        ("nothing", r"has no label 'nothing' \(known: identity"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labelled: Path, column: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_classes(str(labelled), column, None)


RUN = """
epochs: 4
batch_size: 16
device: cpu
views:
  crops:
    - {count: 1, size: 32, scale: [0.5, 1.0]}
backbone: {architecture: resnet18, width: 0.25}
method: {name: supervised, scale: 16.0}
optimizer: {name: sgd, weight_decay: 5e-4}
schedule: {lr: 0.05, warmup_epochs: 1}
checkpoint: {every_steps: 7}
log_every_steps: 3
"""


def test_a_killed_run_ends_with_the_same_backbone_also_on_other_ranks(labelled: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(RUN)
    checkpoints = killed_and_gone_on(config, labelled, tmp_path) / "checkpoints"
    name = "backbone.safetensors"
    # On one rank with the classes of both in its hands: from the same checkpoint, other sums, the same course.
    for later in sorted(checkpoints.glob("step_*.pt"))[1:]:
        later.unlink()
    (tmp_path / "part" / name).unlink()
    Run(config, labelled, tmp_path / "part", 1).finish()
    ours, theirs = (backbones.load(tmp_path / place / name)[0].state_dict() for place in ("part", "whole"))
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], atol=2e-2, rtol=2e-2)


def test_other_labels_are_another_run(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    config = configs.load(tmp_path / "run.yaml", [f"data.path={labelled}", "output=x"], schema=PretrainConfig)
    before = _identity(config)["data_sha256"]
    table = pq.read_table(labelled.with_suffix(".parquet"))
    other = pa.array(np.roll(table["identity"].to_numpy(), 1))
    pq.write_table(table.set_column(0, "identity", other), labelled.with_suffix(".parquet"))
    assert _identity(config)["data_sha256"] != before


def test_rows_of_no_class_are_in_no_norm() -> None:
    shards = [build(Ranks(rank, 4, rank, 4, CPU)).weight for rank in range(4)]
    whole = build(ALONE).weight
    assert sum(float(shard.norm() ** 2) for shard in shards) == pytest.approx(
        float(whole.norm() ** 2), rel=1e-5
    )
