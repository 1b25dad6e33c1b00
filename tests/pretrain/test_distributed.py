"""Two gloo ranks against one process with the whole batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pretrain import distributed
from pretrain.methods.swav import sinkhorn

WORLD = 2


def in_ranks(function, *arguments):
    """Run ``function(rank, *arguments)`` on WORLD ranks; its results, saved as tensors, come back in order."""
    queue = mp.get_context("spawn").SimpleQueue()
    port = _port()
    mp.spawn(_rank, args=(port, queue, function, arguments), nprocs=WORLD)
    return [value for _, value in sorted((queue.get() for _ in range(WORLD)), key=lambda item: item[0])]


def _port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _rank(rank, port, queue, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    queue.put((rank, function(rank, *arguments)))
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))


def place(rank, node=WORLD):
    return distributed.Ranks(rank, WORLD, rank % node, node, torch.device("cpu"))


def _train_step(rank, x, target):
    model = distributed.synchronise_batch_norm(network(), place(rank))
    assert any(isinstance(m, distributed.SyncBatchNorm) for m in model.modules())
    x, target = x.chunk(WORLD)[rank], target.chunk(WORLD)[rank]
    (model(x) * target).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    assert len(distributed.gather(x)) == WORLD
    found = (gradients, model[1].running_mean, model[1].running_var)
    return [[t.tolist() for t in gradients], found[1].tolist(), found[2].tolist()]


def test_batch_norm_over_ranks_equals_one_process():
    x, target = torch.randn(10, 3, 8, 8), torch.randn(10, 4)
    model = network()
    (model(x) * target).sum().backward()
    for gradients, mean, variance in in_ranks(_train_step, x, target):
        for ours, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(ours), parameter.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(mean), model[1].running_mean)
        torch.testing.assert_close(torch.tensor(variance), model[1].running_var)


def _codes(rank, scores):
    return sinkhorn(scores.chunk(WORLD, 1)[rank], 0.05, 3).tolist()


def test_sinkhorn_over_ranks_equals_one_process():
    scores = torch.randn(2, 12, 7) * 0.3
    parts = in_ranks(_codes, scores)
    joined = torch.cat([torch.tensor(part) for part in parts], 1)
    torch.testing.assert_close(joined, sinkhorn(scores, 0.05, 3), atol=1e-6, rtol=1e-5)
