"""Optimisers: LARS (You, Gitman, Ginsburg 2017) in its two readings, and the SGD that it is built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from configs import Config


class LARSConfig(Config):
    """Layer-wise adaptive rate scaling."""

    name: Literal["lars"] = "lars"
    variant: Literal["reference", "paper"] = Field(
        "reference",
        description="reference: learning rate outside the momentum buffer, as the SwAV scripts compute it; "
        "paper: inside, as You et al. write it. They differ only while the learning rate changes",
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-6, ge=0)
    trust_coefficient: float = Field(1e-3, gt=0, description="You et al.'s eta")
    eps: float = Field(1e-8, ge=0, description="added to the denominator of the trust ratio")
    exclude_1d: bool = Field(
        False, description="biases and normalisation get neither adaptation nor decay; SwAV adapts everything"
    )


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)


OptimizerConfig = Annotated[LARSConfig | SGDConfig, Field(discriminator="name")]


class SGD(torch.optim.Optimizer):
    """Stochastic gradient descent with momentum.

    torch's own arithmetic, but two things: a parameter may get its first gradient late, as SwAV's frozen
    prototypes do, at which torch's fused form fails; and where ``found_inf`` is 1, a () float32 tensor on the
    weights' device that the caller sets before :meth:`step`, weights and momenta stay as they were.
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: ParamsT, config: SGDConfig, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": config.momentum})
        self._weight_decay = config.weight_decay

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "a closure is not supported"
        for group in self.param_groups:
            weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            gradients: list[Tensor] = [p.grad for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, gradients, group["lr"], group["momentum"])

    def _update(self, weights: list[Tensor], gradients: list[Tensor], lr: float, momentum: float) -> None:
        self._descend(weights, gradients, lr, momentum, self._weight_decay)

    def _descend(
        self, weights: list[Tensor], gradients: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        sgd(
            weights,
            gradients,
            [self.state[weight]["momentum"] for weight in weights],
            fused=True,
            found_inf=self.found_inf,
            momentum=momentum,
            lr=lr,
            weight_decay=weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


class LARS(SGD):
    """SGD with momentum whose gradient is scaled a tensor at a time.

    For a weight w with gradient g: ``ratio = trust * |w| / (|g| + wd * |w| + eps)``, update direction
    ``ratio * (g + wd * w)``. Where |w| or |g| is zero the raw gradient passes, undecayed and unscaled, as in
    the LARC of the SwAV scripts; a bias that starts at zero therefore takes its first step at full rate.
    """

    def __init__(self, parameters: ParamsT, config: LARSConfig, lr: float) -> None:
        super().__init__(
            parameters, SGDConfig(momentum=config.momentum, weight_decay=config.weight_decay), lr
        )
        self.config = config

    def _update(self, weights: list[Tensor], gradients: list[Tensor], lr: float, momentum: float) -> None:
        updates = self._adapted(weights, gradients)
        if self.config.variant == "paper":
            torch._foreach_mul_(updates, lr)
            lr = 1.0
        self._descend(weights, updates, lr, momentum, weight_decay=0.0)

    def _adapted(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        config = self.config
        weight_norms = torch.stack(torch._foreach_norm(weights))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        denominator = gradient_norms + config.weight_decay * weight_norms + config.eps
        adapts = (weight_norms > 0) & (gradient_norms > 0)
        if config.exclude_1d:
            many = torch.tensor([weight.ndim > 1 for weight in weights], device=adapts.device)
            adapts &= many
        ratios = torch.where(adapts, config.trust_coefficient * weight_norms / denominator, 1.0)
        decays = torch.where(adapts, ratios * config.weight_decay, 0.0)
        updates = list(torch._foreach_mul(gradients, ratios.unbind()))
        torch._foreach_add_(updates, torch._foreach_mul(weights, decays.unbind()))
        return updates


def make_optimizer(parameters: ParamsT, config: LARSConfig | SGDConfig, lr: float) -> SGD:
    """The optimiser that ``config`` names, over parameters or groups of them."""
    if isinstance(config, LARSConfig):
        return LARS(parameters, config, lr)
    return SGD(parameters, config, lr)
