"""AdamW on float32 master weights, for a model that computes in bfloat16 or float32."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW's constants and the course of its learning rate; ``decay_steps`` counts optimiser steps after warm-up."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_steps: int = 0

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "constant" or self.decay_steps == 0:
            return self.lr
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        return self.lr * (1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


class MasterAdamW:
    """Accumulates gradients and steps in float32 while the model's own weights stay in its compute dtype.

    A bfloat16 weight has 8 bits of mantissa: at a learning rate of 1e-5 most updates would round to nothing, so the
    weights that are learned are the float32 masters, and the model holds their rounding.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.steps = 0
        self._params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._masters = [p.detach().float().clone() if p.dtype != torch.float32 else p for _, p in self._params]
        self._adamw = torch.optim.AdamW(
            self._masters,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def accumulate(self) -> None:
        """Adds the model's gradients, just made by a backward pass, to the float32 ones."""
        for (_, p), master in zip(self._params, self._masters, strict=True):
            if master is p or p.grad is None:
                continue
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad.add_(p.grad)
            p.grad = None

    def step(self, then: Callable[[int], Mapping[str, float]] = lambda steps: {}) -> dict[str, float]:
        """Clips, steps, rounds the masters back into the model; returns ``optim/lr`` and ``optim/grad_norm``.

        ``then`` is called with the number of steps taken while the gradients are still there; its metrics are added.
        It may change parameters that are their own masters, which float32 ones are.

        Raises ``FloatingPointError`` when the gradient is not finite; the weights are then untouched.
        """
        norm = float(nn.utils.clip_grad_norm_(self._masters, self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm} at optimiser step {self.steps}")
        lr = self.config.lr_at(self.steps)
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        with torch.no_grad():
            for (_, p), master in zip(self._params, self._masters, strict=True):
                if master is not p:
                    p.copy_(master)
        self.steps += 1
        metrics = then(self.steps)
        self._adamw.zero_grad(set_to_none=True)
        return {"optim/lr": lr, "optim/grad_norm": norm, **metrics}

    def state_dict(self) -> dict[str, Any]:
        masters = {name: m.detach() for (name, _), m in zip(self._params, self._masters, strict=True)}
        return {"steps": self.steps, "masters": masters, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._adamw.load_state_dict(state["adamw"])
        with torch.no_grad():
            for (name, p), master in zip(self._params, self._masters, strict=True):
                master.copy_(state["masters"][name])
                if master is not p:
                    p.copy_(master)
