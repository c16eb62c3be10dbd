"""From a preference recipe to its mixer: the buffer of its own pairs, prior data, or both."""

from collections.abc import Callable
from typing import Any

from align.recipe import PreferenceRecipe
from align.recipe.data import Preferences

DEFAULT_MAX_TOKENS = 1024


def mixer(recipe: PreferenceRecipe, renderer: Any, heldout: list[Any], say: Callable[[str], None]) -> Any:
    """The mixer. Reads the prior data, of which questions that are held out are left out, and says what became of it.

    Raises :class:`rollouts.prompts.PromptError` when the data cannot be used.
    """
    from align.buffers.pairs import PairMixer

    online = PairMixer(
        batch_pairs=recipe.mixer.batch_pairs,
        replay_ratio=recipe.mixer.replay_ratio,
        epochs=recipe.mixer.epochs,
        capacity=recipe.mixer.capacity,
        seed=recipe.seed,
    )
    if recipe.offline is None:
        return online
    from align.buffers.mixer import MixConfig, OfflineOnlineMixer
    from align.buffers.offline import offline_pairs
    from rewards.preference_data import PairReader, ReadConfig
    from rollouts.prompts import question_of

    section = recipe.offline
    context = recipe.rollout.engine.max_context if recipe.rollout else DEFAULT_MAX_TOKENS
    reader = PairReader(
        renderer,
        ReadConfig(text=section.source.text, max_tokens=section.max_tokens or context),
        frozenset(question_of(prompt) for prompt in heldout),
    )
    offline = offline_pairs(
        _source(section.source),
        reader,
        seed=recipe.seed,
        streaming=section.source.streaming,
        block=section.source.block,
    )
    left_out = {name: count for name, count in offline.ledger.items() if name != "pairs" and count}
    gone = "".join(f", {count} left out ({name.replace('_', ' ')})" for name, count in left_out.items())
    if not section.source.streaming:
        say(f"prior data: {offline.ledger['pairs']} pairs{gone}")
    config = MixConfig(
        batch_pairs=recipe.mixer.batch_pairs,
        offline_steps=recipe.schedule.offline_steps,
        offline_updates_per_step=section.updates_per_step,
        offline_ratio=section.ratio,
    )
    return OfflineOnlineMixer(online, offline, config)


def _source(section: Preferences) -> Any:
    from rewards import preference_sources as sources

    match section.type:
        case "jsonl":
            return sources.JsonlPairs(section.path)
        case "files":
            return sources.FilePairs(section.path, section.split)
        case "hub":
            return sources.HubPairs(section.name, section.split, section.subset)
        case "gym":
            return sources.GymPairs(section.task, section.size, section.seed, section.config)
