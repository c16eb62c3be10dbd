"""The policy that an environment sees: observations and a task in, an action out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from rollouts.envs.types import IMAGE, STATE, Action, Observation, Task
from rollouts.policies.config import PolicyError
from rollouts.policies.gaussian import GaussianPolicy, squash


@final
class ActorPolicy:
    """Acts with a :class:`GaussianPolicy`; implements :class:`rollouts.envs.types.Policy`.

    ``instructions`` maps the words of every task to their embedding [I]; it may be empty where the network hears none.
    A ``deterministic`` policy takes the tanh of the mean, any other a sample from a generator of its own, which
    ``reset`` seeds. The network is this policy's alone: its gradients are switched off, so a learner needs another.

    Raises :class:`PolicyError` for an embedding of another size than the network's.
    """

    def __init__(
        self,
        network: GaussianPolicy,
        instructions: Mapping[str, NDArray[Any]],
        *,
        deterministic: bool = False,
        seed: int = 0,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.deterministic = deterministic
        self._instructions = embedding_rows(instructions, network.config.instruction_size)
        self._generator = torch.Generator().manual_seed(seed)

    def reset(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def act(self, observation: Observation, task: Task) -> Action:
        """[A], within [-1, 1]; raises :class:`PolicyError` for an unknown instruction or weights that diverged."""
        config = self.network.config
        seen: dict[str, torch.Tensor] = {}
        if config.state_size:
            seen[STATE] = torch.from_numpy(np.array(observation[STATE], dtype=np.float32)).unsqueeze(0)
        if self.network.encoder is not None:
            seen[IMAGE] = torch.from_numpy(np.array(observation[IMAGE])).unsqueeze(0)
        with torch.inference_mode():
            mean, log_std = self.network(self.network.features(seen, self._embedding(task)))
            if self.deterministic:
                action = torch.tanh(mean)
            else:
                action, _ = squash(mean, log_std, torch.randn(mean.shape, generator=self._generator))
            result: Action = action.squeeze(0).numpy()
        if not np.isfinite(result).all():
            raise PolicyError(f"the policy's action for {task.name!r} is not finite: its weights diverged")
        return result

    def load(self, path: str | Path) -> None:
        """Takes published weights: a safetensors file, named by its path or a ``file:`` URI."""
        self.network.load_weights(Path(str(path).removeprefix("file:")))

    def state_dict(self) -> dict[str, Any]:
        weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return {"network": weights, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._generator.set_state(state["generator"])

    def _embedding(self, task: Task) -> torch.Tensor:
        if not self.network.config.instruction_size:
            return torch.empty(1, 0)
        try:
            return self._instructions[task.instruction]
        except KeyError:
            raise PolicyError(
                f"no embedding for the instruction {task.instruction!r}: embed all tasks' first"
            ) from None


def embedding_rows(instructions: Mapping[str, NDArray[Any]], size: int) -> dict[str, torch.Tensor]:
    """Each instruction's embedding as float32 [1, ``size``]; raises :class:`PolicyError` for one of another size.

    With ``size`` 0 the network hears no instruction and the table is empty.
    """
    if not size:
        return {}
    rows = {text: torch.from_numpy(np.array(row, dtype=np.float32)).unsqueeze(0) for text, row in instructions.items()}
    for text, row in rows.items():
        if row.shape != (1, size):
            raise PolicyError(f"the embedding of {text!r} has {row.shape[-1]} numbers, the policy hears {size}")
    return rows
