"""Small robots: labelled episodes, batches of transitions and policies drawn from a seed, and a publisher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from align.types import TransitionBatch
from rewards.success.returns import monte_carlo_returns
from rewards.success.types import LabelledEpisode
from rollouts.envs.types import IMAGE, STATE, Episode, Source, Task
from rollouts.policies.config import PolicyConfig
from rollouts.policies.gaussian import GaussianPolicy

GAMMA = 0.9
STATES, ACTIONS, WORDS = 3, 2, 4


class Folder:
    """Publishes into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False

    def publish(self, tensors: Mapping[str, torch.Tensor], version: int) -> str:
        path = self.folder / f"v{version}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return f"file:{path}"

    def close(self) -> None:
        self.closed = True


def policy(seed: int = 0, *, image: bool = False, **changes: Any) -> GaussianPolicy:
    settings: dict[str, Any] = {
        "state_size": STATES,
        "action_size": ACTIONS,
        "instruction_size": WORDS,
        "hidden": (8, 8),
    }
    if image:
        settings |= {"image_size": (12, 12), "encoder": "robofume", "image_features": 5, "strides": (1, 1, 1, 1)}
    return GaussianPolicy(PolicyConfig(**(settings | changes)), seed)


def batch(seed: int = 0, size: int = 6, *, image: bool = False) -> TransitionBatch:
    """Half offline and worth imitating, half online; one transition in three ends its task."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def observations() -> dict[str, torch.Tensor]:
        seen = {STATE: normal(size, STATES)}
        if image:
            seen[IMAGE] = torch.randint(0, 256, (size, 12, 12, 3), generator=generator, dtype=torch.uint8)
        return seen

    ends = torch.arange(size) % 3 == 0
    return TransitionBatch(
        observations=observations(),
        next_observations=observations(),
        instructions=normal(size, WORDS),
        actions=0.9 * torch.tanh(normal(size, ACTIONS)),
        rewards=torch.where(ends, 0.0, -1.0),
        discounts=torch.where(ends, 0.0, GAMMA),
        mc_returns=-10 * torch.rand(size, generator=generator),
        is_offline=torch.arange(size) < size // 2,
        imitate=torch.arange(size) < size // 2,
        policy_versions=torch.zeros(size, dtype=torch.int64),
        step=1,
    )


def labelled(
    steps: int,
    *,
    success: bool = True,
    source: Source = Source.POLICY,
    seed: int = 0,
    instruction: str = "open",
    version: int = 0,
    first: int = 0,
    image: bool = False,
) -> LabelledEpisode:
    """An episode whose state counts up from ``first``, so that a frame says which one it is."""
    rng = np.random.default_rng(seed)
    frames = np.arange(first, first + steps + 1)
    observations: dict[str, Any] = {STATE: np.repeat(frames[:, None], STATES, axis=1).astype(np.float32)}
    if image:
        observations[IMAGE] = np.broadcast_to(frames[:, None, None, None], (steps + 1, 2, 2, 3)).astype(np.uint8)
    rewards = np.full(steps, -1, np.float32)
    terminals = np.zeros(steps, bool)
    if success and steps:
        rewards[-1], terminals[-1] = 0, True
    episode = Episode(
        id=f"e{first}",
        task=Task(instruction, instruction),
        observations=observations,
        actions=rng.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32),
        rewards=np.full(steps, np.nan, np.float32),
        success=terminals.copy(),
        detected=np.full(steps, np.nan, np.float32),
        terminated=success,
        truncated=not success,
        source=source,
        policy_version=version,
    )
    returns = monte_carlo_returns(rewards, terminals, gamma=GAMMA, failure_reward=-1)
    return LabelledEpisode(episode, rewards, terminals, returns)
