"""Frames to learn success from: which of them show a task done, and which episode each belongs to.

Letters: ``F`` frames, ``N`` examples (a frame set against a task), ``T`` steps of an episode, ``S`` state dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.success.errors import SuccessError
from rollouts.envs.types import IMAGE, STATE, Episode, Source, Task

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrameConfig:
    """Which frames are examples of what.

    The last ``positive_frames`` of a demonstration show its task done (RoboFuME's relabelling takes 3): it should go on
    for as many steps after success, or some of them do not. The ``ambiguous_frames`` before them are left out: the task
    may have been done there already. All earlier frames, and every frame of a failure, show it undone.

    ``other_tasks``: the end of another task's demonstration shows this task undone too, which holds for a forward and
    backward pair and for tasks of different scenes, and not where two tasks of one scene can be done at once.
    """

    positive_frames: int = 3
    ambiguous_frames: int = 1
    other_tasks: bool = True

    def __post_init__(self) -> None:
        if self.positive_frames < 1:
            raise ValueError(f"positive_frames must be at least 1, got {self.positive_frames}")
        if self.ambiguous_frames < 0:
            raise ValueError(f"ambiguous_frames must be at least 0, got {self.ambiguous_frames}")


@dataclass(frozen=True, slots=True)
class LabelledFrames:
    """Examples of tasks done and undone.

    ``images`` uint8 [F, H, W, 3]; ``states`` float32 [F, S], or None where an episode had none. Example ``n`` sets
    frame ``frame[n]`` against ``tasks[task[n]]``, and ``done[n]`` says whether it shows that task done. ``episode[n]``
    numbers the episode that the frame is from: frames of one episode are alike, and must not be on both sides of a
    split.
    """

    images: NDArray[np.uint8]
    states: NDArray[np.float32] | None
    frame: Integers
    task: Integers
    done: NDArray[np.bool_]
    episode: Integers
    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        """``N``."""
        return len(self.frame)

    def of(self, task: int) -> Integers:
        """The examples of ``tasks[task]``."""
        return np.flatnonzero(self.task == task)


def shows_success(episode: Episode) -> bool:
    """Whether an episode is known to end with its task done, from who made it and not from the simulator.

    A demonstration does. An episode of prior data does where the data set says that it ended (``terminated``).
    """
    return episode.source is Source.DEMONSTRATION or (episode.source is Source.PRIOR and episode.terminated)


def frames_of(episodes: Sequence[Episode], config: FrameConfig) -> LabelledFrames:
    """The examples in demonstrations, failures and prior data; the simulator's ``success`` is never looked at.

    Raises :class:`SuccessError` where an episode has no images, is a policy's, or is a demonstration that is too short.
    """
    if not episodes:
        raise SuccessError("there are no episodes to learn success from; give demonstrations and failures")
    tasks = tuple(dict.fromkeys(episode.task for episode in episodes))
    frame, task, done, number = [], [], [], []
    offset = 0
    for index, episode in enumerate(episodes):
        _check(episode, config)
        count = len(episode) + 1
        labels = np.zeros(count, np.bool_)
        kept = np.ones(count, np.bool_)
        own = tasks.index(episode.task)
        if shows_success(episode):
            labels[-config.positive_frames :] = True
            kept[-config.positive_frames - config.ambiguous_frames : -config.positive_frames] = False
        examples = [(own, np.flatnonzero(kept))]
        if config.other_tasks and shows_success(episode):
            ends = np.arange(count - config.positive_frames, count)
            examples += [(other, ends) for other in range(len(tasks)) if other != own]
        for of_task, rows in examples:
            frame.append(offset + rows)
            task.append(np.full(len(rows), of_task))
            done.append(labels[rows] if of_task == own else np.zeros(len(rows), np.bool_))
            number.append(np.full(len(rows), index))
        offset += count
    with_states = all(STATE in episode.observations for episode in episodes)
    return LabelledFrames(
        images=np.concatenate([episode.observations[IMAGE] for episode in episodes]),
        states=np.concatenate([episode.observations[STATE] for episode in episodes]).astype(np.float32)
        if with_states
        else None,
        frame=np.concatenate(frame).astype(np.int64),
        task=np.concatenate(task).astype(np.int64),
        done=np.concatenate(done),
        episode=np.concatenate(number).astype(np.int64),
        tasks=tasks,
    )


def episode_folds(frames: LabelledFrames, examples: Integers, folds: int, seed: int) -> Integers:
    """A fold, 0 to ``folds`` - 1, for each of ``examples``: whole episodes, those with the task done spread evenly.

    Raises :class:`SuccessError` where there are fewer than two episodes with the task done: none could be held out.
    """
    of_episode = frames.episode[examples]
    with_done = np.unique(of_episode[frames.done[examples]])
    without = np.setdiff1d(np.unique(of_episode), with_done)
    if len(with_done) < 2:
        name = frames.tasks[int(frames.task[examples[0]])].name if len(examples) else "?"
        raise SuccessError(f"task '{name}' has {len(with_done)} demonstrations; give 2 or more, one to hold out")
    folds = min(folds, len(with_done))
    rng = np.random.default_rng([seed, 17])
    fold_of: dict[int, int] = {}
    for group in (with_done, without):
        fold_of |= {int(episode): place % folds for place, episode in enumerate(rng.permutation(group))}
    return np.array([fold_of[int(episode)] for episode in of_episode], np.int64)


def _check(episode: Episode, config: FrameConfig) -> None:
    if IMAGE not in episode.observations:
        raise SuccessError(f"episode '{episode.id}' has no images; record observations with the key '{IMAGE}'")
    if episode.source is Source.POLICY:
        raise SuccessError(f"episode '{episode.id}' is a policy's: nobody said whether it succeeded; leave it out")
    if shows_success(episode) and len(episode) < config.positive_frames + config.ambiguous_frames:
        wanted = config.positive_frames + config.ambiguous_frames
        raise SuccessError(f"demonstration '{episode.id}' has {len(episode)} steps, fewer than the {wanted} frames at "
                           "its end that are no negatives; lower positive_frames")  # fmt: skip
