"""Reward functions of other trainers, in their own form: verl's and OpenRLHF's, over any scorer of items.

Trainers take numbers alone, so an item without a score is a :class:`RewardError` here, and never a number.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rewards.errors import RewardError
from rewards.polar.scorer import ItemScore
from rewards.polar.types import PolarItem, Turns
from rewards.serve.client import RewardClient
from rewards.types import ScoreFailure
from rollouts.types import Message

if TYPE_CHECKING:
    import torch

ScoreItems = Callable[[Sequence[PolarItem]], Sequence[ItemScore]]

URL_ENV = "POLESTAR_REWARD_URL"
"""Where the server is, for functions that a trainer gives no settings."""
TOKEN_ENV = "POLESTAR_REWARD_TOKEN"
"""Its bearer token, where it wants one."""


class VerlReward:
    """verl's function for a whole batch (``reward_manager: batch``), over ``score_items``.

    ``ground_truths`` are the references, ``solution_strs`` the outputs; the prompts are ``extra_infos[i]["prompt"]``,
    as POLAR's data scripts write them. Texts or lists of messages; a numpy array of messages is what parquet makes of
    them. Fields other than these are not read.
    """

    def __init__(self, score_items: ScoreItems) -> None:
        self._score_items = score_items

    def __call__(
        self,
        data_sources: Sequence[Any],
        solution_strs: Sequence[str],
        ground_truths: Sequence[Any],
        extra_infos: Sequence[Mapping[str, Any] | None],
        **kwargs: Any,
    ) -> list[float]:
        items = []
        rows = zip(solution_strs, ground_truths, extra_infos, strict=True)
        for i, (output, reference, extra) in enumerate(rows):
            prompt = (extra or {}).get("prompt")
            if prompt is None:
                raise RewardError(f"item {i}: extra_info has no 'prompt': write the row's prompt there as well")
            if reference is None:
                raise RewardError(f"item {i}: reward_model has no 'ground_truth': it holds the reference")
            items.append(
                PolarItem(turns_of(prompt, f"item {i}: prompt"), turns_of(reference, f"item {i}: ground_truth"), output)
            )
        return numbers(self._score_items, items)


class OpenRLHFReward:
    """OpenRLHF's ``reward_func``, over ``score_items``.

    ``queries`` are prompt and response in one text, ``prompts`` their beginnings, ``labels`` (``--label_key``) the
    references. Gives ``rewards`` and ``scores`` as float32 tensors [N] and the mean under ``extra_logs``. Prompts come
    with the policy's chat template on them, if it has one: ``prompt`` takes it off.
    """

    def __init__(self, score_items: ScoreItems, prompt: Callable[[str], str] = str) -> None:
        self._score_items = score_items
        self._prompt = prompt

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any
    ) -> "dict[str, torch.Tensor | dict[str, float]]":
        import torch

        items = []
        for i, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True)):
            if not query.startswith(prompt):
                raise RewardError(f"item {i}: the query does not begin with its prompt: the response cannot be found")
            if not label:
                raise RewardError(f"item {i}: there is no label: give --label_key the column that holds the reference")
            reference = turns_of(label, f"item {i}: label")
            items.append(PolarItem(self._prompt(prompt), reference, query[len(prompt) :]))
        rewards = torch.tensor(numbers(self._score_items, items), dtype=torch.float32)
        mean = float(rewards.mean()) if len(items) else 0.0
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"reward_mean": mean}}


def compute_score_batch(
    data_sources: Sequence[Any],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    url: str | None = None,
    token_env: str | None = None,
    model: str | None = None,
    **kwargs: Any,
) -> list[float]:
    """:class:`VerlReward` over a server, for ``custom_reward_function.path`` and ``name``.

    ``url``, ``token_env`` and ``model`` come from ``reward_kwargs``; without them the environment variables
    ``POLESTAR_REWARD_URL`` and ``POLESTAR_REWARD_TOKEN`` count.
    """
    score_items = _client(url or _url(), token_env or _token_env(), model).score_items
    return VerlReward(score_items)(data_sources, solution_strs, ground_truths, extra_infos)


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> float:
    """The same for one row, as verl's reward managers that score row by row call it; the server makes the batches."""
    return compute_score_batch([data_source], [solution_str], [ground_truth], [extra_info], **kwargs)[0]


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any
) -> "dict[str, torch.Tensor | dict[str, float]]":
    """:class:`OpenRLHFReward` over the server at ``POLESTAR_REWARD_URL``, for ``--remote_rm_url`` with a file that
    imports it. ``POLESTAR_REWARD_TOKEN`` is the token where it is set."""
    return OpenRLHFReward(_client(_url(), _token_env(), None).score_items)(queries, prompts, labels)


def numbers(score_items: ScoreItems, items: Sequence[PolarItem]) -> list[float]:
    """A number for each item; :class:`RewardError` tells how many have none, and why the first."""
    scores = [answer.score for answer in score_items(items)] if items else []
    if len(scores) != len(items):
        raise RewardError(f"the scorer gave {len(scores)} scores for {len(items)} items")
    found = [score for score in scores if not isinstance(score, ScoreFailure)]
    if len(found) < len(scores):
        first, failure = next((i, s) for i, s in enumerate(scores) if isinstance(s, ScoreFailure))
        raise RewardError(
            f"{len(scores) - len(found)} of {len(items)} items have no score; item {first}: {failure.reason}"
        )
    return found


def turns_of(value: Any, where: str) -> Turns:
    """A text, or messages out of a list or array of ``{"role", "content"}``."""
    if isinstance(value, str):
        return value
    try:
        return tuple(Message(str(message["role"]), str(message["content"])) for message in value)
    except (TypeError, KeyError, IndexError) as error:
        raise RewardError(f"{where} must be text, or a list of messages with role and content") from error


_lock = threading.Lock()


def _client(url: str, token_env: str | None, model: str | None) -> RewardClient:
    """One client for each server, kept as long as the process: connections outlive a call."""
    with _lock:
        return _opened(url, token_env, model)


@cache
def _opened(url: str, token_env: str | None, model: str | None) -> RewardClient:
    return RewardClient(url, token_env=token_env, model=model)


def _url() -> str:
    url = os.environ.get(URL_ENV, "").strip()
    if not url:
        raise RewardError(f"set the environment variable {URL_ENV} to the reward server's address")
    return url


def _token_env() -> str | None:
    return TOKEN_ENV if os.environ.get(TOKEN_ENV) else None
