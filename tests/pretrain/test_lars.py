"""LARS against a loop over the printed formula, and the schedule at its corners."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.lars import LARS, LARSConfig, SGDConfig, make_optimizer
from pretrain.schedule import ScheduleConfig, learning_rate

RATES = [0.1, 0.4, 0.2, 0.3]


def plain_lars(weights, gradients, rates, c: LARSConfig):
    """One tensor and one step at a time, in float64."""
    weights = [w.double().clone() for w in weights]
    momenta = [torch.zeros_like(w) for w in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for i, g in enumerate(step):
            w, g = weights[i], g.double()
            if w.norm() > 0 and g.norm() > 0 and not (c.exclude_1d and w.ndim == 1):
                ratio = c.trust_coefficient * w.norm() / (g.norm() + c.weight_decay * w.norm() + c.eps)
                g = ratio * (g + c.weight_decay * w)
            if c.variant == "paper":
                momenta[i] = c.momentum * momenta[i] + rate * g
                weights[i] = w - momenta[i]
            else:
                momenta[i] = c.momentum * momenta[i] + g
                weights[i] = w - rate * momenta[i]
    return weights


@pytest.mark.parametrize("variant", ["reference", "paper"])
@pytest.mark.parametrize("exclude_1d", [False, True])
def test_equals_the_formula(variant, exclude_1d):
    config = LARSConfig(variant=variant, exclude_1d=exclude_1d, weight_decay=0.01, trust_coefficient=0.02)
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 2, 3)]
    weights = [torch.randn(s, generator=generator).double() for s in shapes]
    weights.append(torch.zeros(3).double())  # a bias that starts at 0
    gradients = [[torch.randn(w.shape, generator=generator).double() for w in weights] for _ in RATES]
    gradients[2][0].zero_()
    parameters = [nn.Parameter(w.clone()) for w in weights]
    optimizer = LARS(parameters, config, lr=RATES[0])
    for rate, step in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for ours, expected in zip(parameters, plain_lars(weights, gradients, RATES, config), strict=True):
        torch.testing.assert_close(ours.detach(), expected, atol=1e-9, rtol=1e-9)


def test_variants_agree_at_a_constant_rate_and_differ_otherwise():
    def run(variant, rates):
        parameter = nn.Parameter(torch.ones(3, 3))
        optimizer = LARS([parameter], LARSConfig(variant=variant), lr=1.0)
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            parameter.grad = torch.full((3, 3), 0.5)
            optimizer.step()
        return parameter.detach()

    torch.testing.assert_close(run("paper", [0.5] * 4), run("reference", [0.5] * 4))
    assert not torch.allclose(run("paper", [0.5, 5.0, 0.1]), run("reference", [0.5, 5.0, 0.1]))


def test_state_survives_a_round_trip():
    def start():
        parameter = nn.Parameter(torch.ones(2, 2))
        return parameter, LARS([parameter], LARSConfig(), lr=0.5)

    def step(parameter, optimizer, value):
        parameter.grad = torch.full((2, 2), value)
        optimizer.step()

    first, optimizer = start()
    step(first, optimizer, 1.0)
    second, restored = start()
    second.data.copy_(first.data)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, each in ((first, optimizer), (second, restored)):
        step(parameter, each, 2.0)
    assert torch.equal(first, second)


@pytest.mark.parametrize("config", [LARSConfig(), LARSConfig(variant="paper"), SGDConfig()])
def test_found_inf_leaves_everything_as_it_was(config):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], config, lr=0.5)
    for gradient, found in ((1.0, 0.0), (math.nan, 1.0), (1.0, 0.0)):
        parameter.grad = torch.full((3,), gradient)
        optimizer.found_inf = torch.tensor(found)
        before = parameter.detach().clone()
        optimizer.step()
        assert torch.equal(parameter, before) == bool(found)
    assert torch.isfinite(parameter).all()
    ((momentum,),) = (state.values() for state in optimizer.state.values())
    assert torch.isfinite(momentum).all()


def test_a_parameter_without_gradient_is_left_alone():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    parameters[0].grad = torch.ones(2)
    optimizer = make_optimizer(parameters, LARSConfig(), lr=1.0)
    optimizer.step()
    assert torch.equal(parameters[1], torch.ones(2))
    assert list(optimizer.state) == [parameters[0]]


def test_sgd_equals_torch_also_for_a_gradient_that_comes_late():
    def run(make):
        parameters = [nn.Parameter(torch.linspace(-1, 1, 1000)), nn.Parameter(torch.ones(7))]
        optimizer = make(parameters)
        for step, rate in enumerate(RATES):
            optimizer.param_groups[0]["lr"] = rate
            parameters[0].grad = torch.sin(torch.arange(1000.0) + step)
            parameters[1].grad = torch.full((7,), 0.3 + step) if step > 1 else None
            optimizer.step()
        return [p.detach() for p in parameters]

    ours = run(lambda p: make_optimizer(p, SGDConfig(weight_decay=0.01), 0.1))
    theirs = run(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_schedule_of_the_scripts():
    """Their array: a linear rise over 10 epochs, then half a cosine over the rest."""
    config = ScheduleConfig(lr=4.8, final_lr=0.0048, start_lr=0.3, warmup_epochs=10)
    rest = np.arange(19_000)
    cosine = 0.0048 + 0.5 * (4.8 - 0.0048) * (1 + np.cos(np.pi * rest / 19_000))
    expected = np.concatenate([np.linspace(0.3, 4.8, 1000), cosine])
    rates = [learning_rate(config, step, 100, 20_000) for step in range(20_000)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


def test_schedule_without_decay_does_not_know_its_end():
    config = ScheduleConfig(lr=2.0, warmup_epochs=1, decay="constant")
    rates = [learning_rate(config, step, 10, total) for step in (0, 9, 10, 99) for total in (100, 1000)]
    assert rates == [0.0, 0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_schedule_without_warmup_starts_at_the_top():
    config = ScheduleConfig(lr=1.0)
    assert learning_rate(config, 0, 10, 100) == 1.0
    assert learning_rate(config, 50, 10, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
