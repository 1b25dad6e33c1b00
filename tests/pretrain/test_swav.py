"""SwAV's assignment, loss, freeze and queue against plain implementations of the equations."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pretrain import backbones
from pretrain.methods.method import Moment, rankme
from pretrain.methods.swav import SwAV, SwAVConfig, sinkhorn, swapped_loss


def plain_sinkhorn(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The algorithm of the paper's appendix on one (B, K) matrix, float64, no stabilisation."""
    q = np.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


@pytest.fixture
def scores():
    """(2, 24, 10) cosines, float64: what is compared are equations, not roundings."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(2, 24, 16, generator=generator).double(), dim=2)
    prototypes = torch.nn.functional.normalize(torch.randn(10, 16, generator=generator).double(), dim=1)
    return embedding @ prototypes.T


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.5])
def test_sinkhorn_equals_the_plain_algorithm(scores, epsilon):
    ours = sinkhorn(scores, epsilon, 3)
    for problem in range(2):
        expected = plain_sinkhorn(scores[problem].numpy(), epsilon, 3)
        np.testing.assert_allclose(ours[problem].numpy(), expected, rtol=1e-6, atol=1e-12)
    single = sinkhorn(scores.float(), epsilon, 3)
    torch.testing.assert_close(single.double(), ours, rtol=1e-4, atol=1e-6)


def test_sinkhorn_balances(scores):
    codes = sinkhorn(scores, 0.05, 100)
    torch.testing.assert_close(codes.sum(2), torch.ones(2, 24).double())
    torch.testing.assert_close(codes.sum(1), torch.full((2, 10), 2.4).double(), atol=1e-3, rtol=1e-3)


def test_sinkhorn_survives_what_overflows_float32(scores):
    """exp(1 / 0.01) is beyond it."""
    codes = sinkhorn(scores.float().fill_(1.0) + 1e-3 * scores.float(), 0.01, 3)
    assert torch.isfinite(codes).all()


@pytest.mark.parametrize("epsilon", [0.003, 0.01])
def test_a_prototype_far_from_every_picture_gets_its_share(scores, epsilon):
    """exp(-2 / 0.01) is 0 in float32; equipartition gives such a prototype as many pictures as any other."""
    scores[:, :, 0] = -1 + 1e-3 * scores[:, :, 0]
    scores[:, :3, 1] = 1.0
    codes = sinkhorn(scores.float(), epsilon, 3)
    for problem in range(2):
        expected = plain_sinkhorn(scores[problem].float().double().numpy(), epsilon, 3)
        np.testing.assert_allclose(codes[problem].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert (codes[:, :, 0].sum(1) > 1).all(), "of 24 / 10"


def test_an_epsilon_beyond_the_range_of_the_assignments_is_refused():
    with pytest.raises(ValidationError, match=r"epsilon\n.*greater than or equal to 0.003"):
        SwAVConfig(epsilon=0.001)


def test_loss_equals_the_sum_over_pairs(scores):
    """Equation 2 of the paper, a sample and a pair at a time in numpy."""
    views = torch.cat([scores, scores.roll(1, 2), scores.roll(2, 2)])  # six views
    codes = sinkhorn(views[:2], 0.05, 3).numpy()
    pairs = []
    for a in range(2):
        for v in set(range(6)) - {a}:
            p = np.exp(views[v].numpy() / 0.1)
            p /= p.sum(1, keepdims=True)
            pairs.append(-(codes[a] * np.log(p)).sum(1).mean())
    assert swapped_loss(views, torch.from_numpy(codes), 0.1).item() == pytest.approx(np.mean(pairs), rel=1e-9)


def test_uniform_predictions_cost_ln_k():
    codes = sinkhorn(torch.randn(2, 8, 50), 0.05, 3)
    loss = swapped_loss(torch.zeros(6, 8, 50), codes, 0.1)
    assert loss.item() == pytest.approx(math.log(50), abs=1e-5)


@pytest.fixture
def method():
    torch.manual_seed(0)
    config = SwAVConfig(prototypes=12, projection_dim=8, hidden_dim=16, queue_length=8, queue_start_epoch=1)
    return SwAV(backbones.build("resnet18", 0.125), config)


def at(epoch: float) -> Moment:
    return Moment(step=round(10 * epoch), steps_per_epoch=10, total=100, seed=0, rows=np.arange(4))


def views(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 3, 32, 32, generator=generator), torch.randn(8, 3, 16, 16, generator=generator)]


def test_prototypes_are_unit_vectors_and_frozen_at_first(method):
    method(views(0), at(0.0)).backward()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(12))
    assert method.prototypes.weight.grad is not None
    method.after_backward(at(0.5))
    assert method.prototypes.weight.grad is None
    method(views(0), at(1.0)).backward()
    method.after_backward(at(1.0))
    assert method.prototypes.weight.grad is not None


def test_queue_fills_from_its_start_epoch_and_then_takes_part(method):
    method(views(0), at(0.9))
    assert not method.queue.any()
    method(views(1), at(1.0))
    assert method.queue[:, :4].any(dim=2).all()
    assert not method.queue[:, 4:].any()
    newest = method.queue[:, :4].clone()
    method(views(2), at(1.1))
    assert torch.equal(method.queue[:, 4:], newest)  # newest rows first
    scores = torch.randn(2, 4, 12) * 0.1
    queued = (method.queue @ method.prototypes.weight.T).detach()
    with_queue = method.assign(torch.randn(2, 4, 8), scores, epoch=1.2)
    for problem in range(2):
        joined = torch.cat([queued[problem], scores[problem]]).double().numpy()
        expected = plain_sinkhorn(joined, method.config.epsilon, 3)[-4:]
        np.testing.assert_allclose(with_queue[problem].numpy(), expected, atol=1e-6)
    alone = method.assign(torch.randn(2, 4, 8), scores, epoch=0.0)
    assert not torch.allclose(with_queue, alone)


def test_queue_of_all_ranks_is_divided_anew(method):
    method.queue = torch.arange(2 * 8 * 8.0).view(2, 8, 8)
    joined = method.rank_state()
    other = SwAV(backbones.build("resnet18", 0.125), method.config, world=2)
    other.load_rank_state(joined, rank=1, world=2)
    assert torch.equal(other.queue, method.queue[:, 4:])


def test_indicators_tell_collapse_from_health(method):
    codes = torch.eye(12).expand(2, 12, 12)
    method._last = torch.eye(12).expand(6, 12, 12), codes, torch.randn(12, 64)
    healthy = method.indicators()
    assert healthy["prototype_usage"] == pytest.approx(1.0)
    assert healthy["feature_std"] > 0.8
    assert healthy["code_entropy"] == 0
    assert healthy["duplicate_prototypes"] == 0
    assert healthy["effective_rank"] > 10
    same = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    features = method.backbone.eval()(same).detach()
    method.prototypes.weight.data[3:] = method.prototypes.weight.data[2]
    method._last = torch.eye(12)[:1].expand(6, 12, 12), torch.full((2, 12, 12), 1 / 12), features
    collapsed = method.indicators()
    assert collapsed["prototype_usage"] == pytest.approx(1 / 12)
    assert collapsed["feature_std"] < 1e-3
    assert collapsed["code_entropy"] == pytest.approx(1.0)
    assert collapsed["duplicate_prototypes"] == pytest.approx(9 / 12)
    assert collapsed["effective_rank"] < 1.01


def test_rankme_counts_equal_directions():
    rotation = torch.linalg.qr(torch.randn(20, 20))[0]
    assert rankme(rotation[:7].repeat(3, 1)) == pytest.approx(7, rel=1e-3)
