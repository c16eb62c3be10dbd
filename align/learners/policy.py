"""The policy that is trained and the reference it is compared with: two models, or one model and an adapter.

What trains is the difference between the classes; what a learner sees of them is the same.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.errors import UserError
from align.learners.adapters import ADAPTER, AdapterConfig, GradientDropout, check_targets, to_peft
from rollouts.models import load_causal_lm


class Policy(Protocol):
    """A causal language model in training, with the model that it started from as its reference."""

    @property
    def model(self) -> Any:
        """The transformers model that computes the policy; its parameters that require gradients are trained."""
        ...

    def reference(self) -> AbstractContextManager[Any]:
        """The model of the reference policy, valid inside the context; it may be ``model`` in another state."""
        ...

    def published(self) -> Mapping[str, Tensor]:
        """The policy's weights as one plain model, under Hugging Face names, without tied ones; of this moment."""
        ...

    def initial(self) -> Mapping[str, Tensor]:
        """The reference's weights, under the names of :meth:`published`."""
        ...

    def extra_loss(self) -> Tensor | None:
        """What the method itself adds to the loss of an optimiser step, a scalar, once and not for each example."""
        ...

    def after_step(self, step: int) -> dict[str, float]:
        """Is told that optimiser step ``step``, counted from 1, was taken, while its gradients are still there."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the policy as a plain model in the Hugging Face format."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the trained parameters, which the optimiser keeps, do not say."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build_policy(
    model_path: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    gradient_checkpointing: bool = False,
    adapter: AdapterConfig | None = None,
    seed: int = 0,
) -> Policy:
    """The policy that starts as the model in ``model_path``: all weights train, or an ``adapter`` drawn from ``seed``.

    In evaluation mode, without the model's dropout: a preference loss is about the policy that is deployed.
    """

    def load() -> Any:
        return load_causal_lm(model_path, dtype, attention)

    policy = FullPolicy(load(), load()) if adapter is None else AdapterPolicy(load(), adapter, seed)
    if gradient_checkpointing:
        _checkpoint_layers(policy.model)
    return policy


class FullPolicy:
    """All weights train; the reference is a frozen second copy. Implements :class:`Policy`."""

    def __init__(self, model: Any, frozen: Any) -> None:
        self.model, self._frozen = _on_device(model), _on_device(frozen)
        self._frozen.requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        yield self._frozen

    def published(self) -> dict[str, Tensor]:
        return _untied(self.model)

    def initial(self) -> dict[str, Tensor]:
        return _untied(self._frozen)

    def extra_loss(self) -> None:
        return None

    def after_step(self, step: int) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None


class AdapterPolicy:
    """A peft adapter trains beside the frozen model, which with the adapter switched off is the reference.

    There is no second copy. Implements :class:`Policy`.

    A LoRA lives in the model's dtype, with the float32 masters of :class:`align.learners.optim.MasterAdamW` behind it
    as behind any weight: in bfloat16 on the CPU that saves an eighth of a step, the time of casting the input of every
    layer. An AdaLoRA lives in float32: it reads its own gradients and sets its own weights to zero, so that it must be
    its own master.
    """

    def __init__(self, model: Any, config: AdapterConfig, seed: int) -> None:
        from peft import get_peft_model

        self.config = config
        self._names = tuple(_untied(model))
        check_targets(model, config.target_modules)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._peft = get_peft_model(model, to_peft(config), autocast_adapter_dtype=config.type == "adalora")
        self.model: Any = _on_device(self._peft.get_base_model())
        self._layers = _adapted(self.model)
        for name, parameter in self.model.named_parameters():
            if ".ranknum." in name:  # a constant, which peft leaves trainable
                parameter.requires_grad_(False)
        if config.dropout:
            for layer in self._layers.values():
                layer.lora_dropout[ADAPTER] = GradientDropout(config.dropout)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        with self._peft.disable_adapter():
            yield self.model

    def published(self) -> Mapping[str, Tensor]:
        """Base plus update, added in float32 and rounded once into new tensors, one at a time as they are asked for.

        Merging in place and taking it back would leave the rounding of both in the base. In bfloat16 an update of an
        entry below half its rounding step does not show here, while the live policy has it.
        """
        return _Weights(self._names, self._merged)

    def initial(self) -> Mapping[str, Tensor]:
        return _Weights(self._names, self._base)

    def extra_loss(self) -> Tensor | None:
        """AdaLoRA's ``orth_reg_weight * mean(|P P^T - 1|)`` over all A and B, Frobenius norms.

        Source: Zhang et al., arXiv 2303.10512, equation 4, in the form of the authors' code: norms unsquared, averaged.
        """
        if self.config.type != "adalora" or not self.config.orth_reg_weight:
            return None
        grams = [
            gram
            for layer in self._layers.values()
            for a, b in [(layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])]
            for gram in (a @ a.T, b.T @ b)
        ]
        norms = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.config.orth_reg_weight * torch.stack(norms).mean()

    def after_step(self, step: int) -> dict[str, float]:
        """AdaLoRA: scores the directions and drops those beyond the budget; returns ``adapter/rank_mean``."""
        if self.config.type != "adalora":
            return {}
        self._peft.base_model.update_and_allocate(step)
        ranks = [torch.count_nonzero(layer.lora_E[ADAPTER]) for layer in self._layers.values()]
        return {"adapter/rank_mean": float(torch.stack(ranks).float().mean())}

    def save(self, folder: Path) -> None:
        """Writes the merged model, and the adapter alone in peft's format to ``folder/adapter``."""
        self.model.save_pretrained(folder, state_dict=dict(self.published()))
        with warnings.catch_warnings():  # a matrix may have lost all its directions: no fault, as peft suspects
            warnings.filterwarnings("ignore", message=".*have invalid shape")
            self._peft.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)

    def state_dict(self) -> dict[str, Any]:
        if self.config.type != "adalora":
            return {}
        allocator = self._peft.base_model.rankallocator
        scores = {name: dict(getattr(allocator, name)) for name in _SCORES}
        return {"rank_pattern": self._peft.peft_config[ADAPTER].rank_pattern, **scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.config.type != "adalora":
            return
        self._peft.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]
        device = next(self.model.parameters()).device
        for name in _SCORES:
            scores = {parameter: score.to(device, copy=True) for parameter, score in state[name].items()}
            setattr(self._peft.base_model.rankallocator, name, scores)

    def _base(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        module = self._layers[owner].get_base_layer() if owner in self._layers else self.model.get_submodule(owner)
        tensor: Tensor = getattr(module, leaf)
        return tensor.detach()

    @torch.no_grad()
    def _merged(self, name: str) -> Tensor:
        base, (owner, _, leaf) = self._base(name), name.rpartition(".")
        if owner not in self._layers or leaf != "weight":
            return base
        layer = self._layers[owner]
        if self.config.type == "adalora":
            update: Tensor = layer.get_delta_weight(ADAPTER)
        else:  # peft would round the update before it is added
            a, b = layer.lora_A[ADAPTER].weight.float(), layer.lora_B[ADAPTER].weight.float()
            update = layer.scaling[ADAPTER] * (b @ a)
            update = update.T if layer.fan_in_fan_out else update
        return (base.float() + update).to(base.dtype)


_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # sensitivity, its average and its uncertainty, by parameter


class _Weights(Mapping[str, Tensor]):
    """Named tensors that are made when they are asked for, so that they need not all fit at once."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _adapted(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _untied(model: Any) -> dict[str, Tensor]:
    """The weights of a transformers model without those that are another's."""
    tied = getattr(model, "_tied_weights_keys", None) if model.config.tie_word_embeddings else None
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in (tied or ())}


def _checkpoint_layers(model: nn.Module) -> None:
    """Keeps only each decoder layer's input for the backward pass, which computes the layer again.

    Not by transformers' own switch: that one acts in training mode only, and so would bring dropout back.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no layers to checkpoint; set gradient_checkpointing to false")
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def _on_device(model: Any) -> Any:
    return model.cuda() if torch.cuda.is_available() else model
