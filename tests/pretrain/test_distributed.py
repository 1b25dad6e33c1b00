"""Gloo ranks against one process with the whole batch."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pretrain import backbones, distributed
from pretrain.agreement import Agreement
from pretrain.distributed import Ranks
from pretrain.lars import LARS, LARSConfig
from pretrain.methods.method import Moment
from pretrain.methods.swav import SwAV, SwAVConfig, sinkhorn
from tests.pretrain.runs import free_port

CPU = torch.device("cpu")


def in_ranks(world, function, *arguments):
    """Run ``function(place, *arguments)`` on ``world`` ranks; what they return, JSON-like, in order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, free_port(), folder, function, arguments), nprocs=world)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(world)]


def _rank(rank, world, port, folder, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = function(Ranks(rank, world, rank, world, CPU), *arguments)
    Path(folder, str(rank)).write_text(json.dumps(found))
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))


def _train_step(place, over, x, target):
    model = distributed.synchronise_batch_norm(network(), place, over)
    assert any(isinstance(m, distributed.SyncBatchNorm) for m in model.modules())
    x, target = x.chunk(place.world)[place.rank], target.chunk(place.world)[place.rank]
    (model(x) * target).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    assert len(distributed.gather(x)) == place.world
    return [t.tolist() for t in (*gradients, model[1].running_mean, model[1].running_var)]


def test_batch_norm_over_ranks_equals_one_process():
    x, target = torch.randn(10, 3, 8, 8), torch.randn(10, 4)
    model = network()
    (model(x) * target).sum().backward()
    expected = [*(p.grad for p in model.parameters()), model[1].running_mean, model[1].running_var]
    for found in in_ranks(2, _train_step, "global", x, target):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(torch.tensor(ours), theirs, atol=1e-4, rtol=1e-4)


def _node_statistics(place, x):
    place = Ranks(place.rank, place.world, place.rank % 2, 2, CPU)  # two nodes of two ranks
    model = distributed.synchronise_batch_norm(network(), place, "node")
    model(x.chunk(place.world)[place.rank])
    return model[1].running_mean.tolist()


def test_batch_norm_of_a_node_knows_nothing_of_the_others():
    x = torch.randn(8, 3, 8, 8)
    found = torch.tensor(in_ranks(4, _node_statistics, x))
    for node in range(2):
        model = network()
        model(x.chunk(2)[node])
        torch.testing.assert_close(found[2 * node], model[1].running_mean)
        assert torch.equal(found[2 * node], found[2 * node + 1])
    assert not torch.allclose(found[0], found[2])


# --- a whole step of SwAV, in float64 ------------------------------------------------------------------------

BATCH, STEPS = 8, 4


def _views(step):
    """Of the global batch, (view, sample) first: a crop of each size, twice."""
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(count, BATCH, 3, size, size, generator=generator, dtype=torch.float64)
        for count, size in ((2, 32), (3, 24))
    ]


def _swav_steps(place):
    """Weights, running statistics and the mean loss after some steps with a queue, DDP and LARS."""
    torch.manual_seed(0)
    config = SwAVConfig(prototypes=9, projection_dim=8, hidden_dim=16, queue_length=16, queue_start_epoch=0)
    method = SwAV(backbones.build("resnet18", 0.125), config, place.world).double()
    distributed.synchronise_batch_norm(method, place, "global")
    model = distributed.data_parallel(method)
    optimizer = LARS(method.parameters(), LARSConfig(trust_coefficient=0.01, weight_decay=1e-3), lr=0.5)
    losses = []
    for step in range(STEPS):
        mine = [v.chunk(place.world, 1)[place.rank].flatten(0, 1) for v in _views(step)]
        moment = Moment(step, 1, STEPS, 0, np.arange(BATCH))
        loss = model(mine, moment)
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(moment)
        optimizer.step()
        losses.append(distributed.all_reduce(loss.detach().clone()) / place.world)
    state = [value.tolist() for value in method.state_dict().values()]
    return [torch.stack(losses).tolist(), *state]


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_over_ranks_equals_one_process(world):
    expected = _swav_steps(Ranks(0, 1, 0, 1, CPU))
    assert expected[0][-1] != pytest.approx(expected[0][0], abs=1e-3), "nothing was learnt that could differ"
    for found in in_ranks(world, _swav_steps):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=1e-9)


def _codes(place, scores):
    return sinkhorn(scores.chunk(place.world, 1)[place.rank], 0.05, 3).tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_sinkhorn_over_ranks_equals_one_process(world):
    scores = torch.randn(2, 12, 7).double() * 0.3
    joined = torch.cat(
        [torch.tensor(part, dtype=scores.dtype) for part in in_ranks(world, _codes, scores)], 1
    )
    torch.testing.assert_close(joined, sinkhorn(scores, 0.05, 3), atol=1e-9, rtol=1e-9)


# --- what the ranks agree on ---------------------------------------------------------------------------------


def _verdicts(place):
    """Rank 1 sees a loss that is not a number in step 1; rank 0 is asked to stop in step 2."""
    agreement, seen = Agreement(CPU), []
    for step in range(4):
        loss = torch.tensor(math.nan if (step, place.rank) == (1, 1) else 1.0)
        found = agreement.note(loss, [torch.ones(3)], stop=(step, place.rank) == (2, 0))
        seen.append([found.item(), *agreement.earlier(), *agreement.latest()])
    return seen


def test_all_ranks_hear_of_a_broken_step_at_once_and_of_a_stop_a_step_later():
    broken, stop = True, True
    for seen in in_ranks(2, _verdicts):
        assert seen == [
            [0.0, False, False, False, False],
            [1.0, False, False, broken, False],
            [1.0, broken, False, broken, stop],
            [1.0, broken, stop, broken, stop],
        ]


def test_a_gradient_that_is_not_finite_is_found():
    for value in (math.inf, math.nan):
        agreement = Agreement(CPU)
        assert agreement.note(torch.tensor(1.0), [torch.ones(2), torch.tensor([0.0, value])], False) == 1
        assert agreement.latest() == (True, False)
