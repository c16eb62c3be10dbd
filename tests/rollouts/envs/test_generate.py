"""Generated prior data: truth agrees with purpose, seeds decide everything, and an interruption changes nothing."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from rollouts.envs import generate as generating
from rollouts.envs.api import EnvError
from rollouts.envs.generate import CARD, GENERATED, GenerateConfig, Progress, generate
from rollouts.envs.make import make_env
from rollouts.envs.types import Episode, Source, Task
from rollouts.episodes.files import EpisodeError
from rollouts.episodes.statistics import describe
from rollouts.episodes.store import INFO, SHARDS, read_episodes, read_ids, read_info
from tests.rollouts.episodes.made import same


def config(path: Path, **settings: Any) -> GenerateConfig:
    defaults: dict[str, Any] = {"demonstrations": 3, "failures": 4, "horizon": 40, "shard_size": 4}
    return GenerateConfig(str(path), "point", **defaults | settings)


def point(name: str, **settings: Any) -> Any:
    """Any name is a point scene: other scenes for tests of data from several."""
    return make_env("point", image=settings["image"], image_size=settings["image_size"])


def task_without_script(name: str, **settings: Any) -> Any:
    env = point(name, **settings)
    env.tasks = (Task("fly", "fly"),)
    return env


def made(path: Path, **settings: Any) -> list[Episode]:
    return list(read_episodes(generate(config(path, **settings))))


def test_what_is_asked_for_is_there_and_true_to_its_purpose(tmp_path: Path) -> None:
    episodes = made(tmp_path)
    counts = Counter((e.task.name, e.source) for e in episodes)
    assert counts == {
        ("there", Source.DEMONSTRATION): 3,
        ("back", Source.DEMONSTRATION): 3,
        ("there", Source.FAILURE): 4,
        ("back", Source.FAILURE): 4,
    }
    for e in episodes:
        assert len(e.observations["state"]) == len(e) + 1 and np.abs(e.actions).max() <= 1
        assert np.isnan(e.detected).all() and not e.metadata["instant"]
        # A step pays 0 where it leaves the task done, and -1 elsewhere: the truth that the flags must agree with.
        assert np.array_equal(e.rewards == 0, e.success)
        if e.source is Source.DEMONSTRATION:
            assert e.success.tolist() == [False] * (len(e) - 1) + [True]
            assert (e.terminated, e.truncated) == (True, False)
        else:
            assert not e.success.any() and (e.terminated, e.truncated) == (False, True)
            # The place of the block tells the same: at no time is it where it should be, at the start neither.
            goal = 0.5 if e.task.name == "there" else -0.5
            assert (np.abs(e.observations["state"][:, 2] - goal) > 0.1).all()


def test_a_demonstration_may_hold_at_its_end(tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", failures=0)
    held = made(tmp_path / "held", failures=4, hold=3)
    demonstrations = [e for e in held if e.source is Source.DEMONSTRATION]
    assert [len(e) for e in demonstrations] == [len(e) + 3 for e in plain]
    for e, first in zip(demonstrations, plain, strict=True):
        assert np.array_equal(e.actions[: len(first)], first.actions)
        assert e.success.tolist() == [False] * (len(first) - 1) + [True] * 4 and e.terminated
    assert not any(e.success.any() for e in held if e.source is Source.FAILURE)


def test_failures_are_of_each_kind_in_turn(tmp_path: Path) -> None:
    failures = [e for e in made(tmp_path, demonstrations=0, failures=5) if e.source is Source.FAILURE]
    kinds = {task: [e.metadata["kind"] for e in failures if e.task.name == task] for task in ("there", "back")}
    assert kinds["there"] == kinds["back"] == ["stop", "miss", "near", "noise", "stop"]
    for e in failures:
        assert e.metadata["kind"] == "near" or len(e) == 40
    # Cut off 1 to 3 steps before success, a tenth of a unit each: close, and never there.
    for e in (e for e in failures if e.metadata["kind"] == "near"):
        goal = 0.5 if e.task.name == "there" else -0.5
        assert 0.1 < abs(e.observations["state"][-1, 2] - goal) < 0.1 + 3 * 0.1 + 1e-6


def test_seeds_decide_everything_and_nothing_else_does(tmp_path: Path) -> None:
    first = made(tmp_path / "a", seed=1)
    np.random.seed(7)
    assert all(same(a, b) for a, b in zip(first, made(tmp_path / "b", seed=1), strict=True))
    other = made(tmp_path / "c", seed=2)
    assert not any(np.array_equal(a.observations["state"][0], b.observations["state"][0]) for a, b in
                   zip(first, other, strict=True))  # fmt: skip
    states = {e.observations["state"][0].tobytes() for e in first}
    assert len(states) == len(first)
    # What is made beside it does not change an episode.
    more = {e.id: e for e in made(tmp_path / "d", seed=1, failures=6, prior=(), demonstrations=5)}
    assert all(same(e, more[e.id]) for e in first)


@pytest.mark.parametrize("chain", [1, 4])
def test_an_interrupted_call_is_taken_up_again_bit_for_bit(tmp_path: Path, chain: int) -> None:
    generate(config(tmp_path / "whole", chain=chain))

    def stop(progress: Progress) -> None:
        if progress.done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(config(tmp_path / "parts", chain=chain), progress=stop)
    stored = len(read_ids(tmp_path / "parts"))
    assert 0 < stored < 14
    generate(config(tmp_path / "parts", chain=chain))
    files = [INFO, GENERATED, CARD, *(f"{SHARDS}/{n:05d}.parquet" for n in range(4))]
    for file in files:
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    # A third call finds nothing to do.
    before = (tmp_path / "whole" / INFO).read_bytes()
    generate(config(tmp_path / "whole", chain=chain))
    assert (tmp_path / "whole" / INFO).read_bytes() == before


def test_a_chain_begins_where_it_ended(tmp_path: Path) -> None:
    episodes = made(tmp_path, failures=0, chain=6, demonstrations=3, home=False)
    assert [e.task.name for e in episodes] == ["there", "back"] * 3
    assert [e.metadata["hard_reset"] for e in episodes] == [True] + [False] * 5
    for before, after in pairwise(episodes):
        # The hand and the block, but not the goal, which is the next task's.
        assert np.array_equal(before.observations["state"][-1, :4], after.observations["state"][0, :4])
    homed = made(tmp_path / "home", failures=0, chain=6, demonstrations=3)
    for before, after in pairwise(homed):
        assert np.array_equal(before.observations["state"][-1, 2:4], after.observations["state"][0, 2:4])
        assert after.observations["state"][0, :2].tolist() == pytest.approx([0, 0.6])


def test_a_chain_is_reset_after_a_rejected_attempt(tmp_path: Path) -> None:
    # So short a horizon, and so much noise, that attempts fail now and then.
    episodes = made(tmp_path, failures=0, chain=30, demonstrations=15, horizon=26, noise=0.6)
    rejected = [e.metadata["rejected"] for e in episodes]
    assert sum(rejected) > 0
    assert [e.metadata["hard_reset"] for e in episodes[1:]] == [r > 0 for r in rejected[1:]]
    assert all(e.success[-1] for e in episodes)


def test_prior_data_are_of_other_scenes(tmp_path: Path) -> None:
    path = generate(
        config(tmp_path, demonstrations=1, failures=1, prior=("second", "third"), prior_demonstrations=2), make=point
    )
    episodes = list(read_episodes(path))
    assert [e.id for e in episodes] == [
        *(f"point/demonstration/{n:04d}" for n in range(2)),
        *(f"point/failure/{n:04d}" for n in range(2)),
        *(f"{scene}/prior/{n:04d}" for scene in ("second", "third") for n in range(4)),
    ]
    prior = [e for e in episodes if e.source is Source.PRIOR]
    assert {e.metadata["scene"] for e in prior} == {"second", "third"} and all(e.succeeded for e in prior)
    # Scenes draw numbers of their own.
    assert len({e.observations["state"].tobytes() for e in episodes}) == len(episodes)


def test_pictures_and_the_card(tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = generate(config(tmp_path, demonstrations=1, failures=1, image=True, image_size=12), progress=seen.append)
    [first, *_] = read_episodes(path)
    assert first.observations["image"].shape == (len(first) + 1, 12, 12, 3)
    assert [(p.scene, p.done, p.total) for p in seen] == [("point", n, 4) for n in range(1, 5)]
    card = (path / CARD).read_text()
    assert card.startswith("# Episodes of point\n\n4 episodes, ") and "uint8[12x12x3] (PNG)" in card
    assert sum(group.rejected for group in describe(path).groups) == seen[-1].rejected
    assert "| there | take the block to the right | demonstration | 1 |" in card


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    small = config(tmp_path / "a", demonstrations=1, failures=0)
    generate(small)
    with pytest.raises(EpisodeError, match=r"was generated with noise 0\.1 \(now 0\.2\), seed 0 \(now 3\)"):
        generate(replace(small, noise=0.2, seed=3))
    assert json.loads((tmp_path / "a" / GENERATED).read_text())["kinds"] == ["stop", "miss", "near", "noise"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("")
    with pytest.raises(EpisodeError, match="holds something else"):
        generate(config(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["thesis.txt"]


def test_settings_that_gave_no_episode_bind_nobody(tmp_path: Path) -> None:
    hopeless = config(tmp_path / "a", horizon=2, attempts=1, failures=0)
    with pytest.raises(EpisodeError, match="none would begin undone"):
        generate(hopeless)
    assert len(list(read_episodes(generate(replace(hopeless, horizon=40, attempts=50))))) == 6


def test_a_wrong_scene_is_told_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    for wrong in (
        replace(config(tmp_path / "a"), scene="moon"),
        config(tmp_path / "a", prior=("metaworld:moon",)),
    ):
        with pytest.raises(EnvError, match="moon"):
            generate(wrong)
    with pytest.raises(EnvError, match="no script for the task"):
        generate(replace(config(tmp_path / "a"), scene="gym:CartPole-v1"), make=task_without_script)
    assert list(tmp_path.iterdir()) == []


def test_progress_tells_what_was_there(tmp_path: Path) -> None:
    seen: list[Progress] = []
    generate(config(tmp_path, failures=0))
    generate(config(tmp_path, failures=0), progress=seen.append)
    assert [(p.done, p.found) for p in seen] == [(n, n) for n in range(1, 7)]


def test_the_rate_of_decisions_is_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"demonstrations": 1, "failures": 0}
    assert read_info(generate(config(tmp_path / "timeless", **few))).rate is None
    monkeypatch.setattr(generating, "decision_rate", lambda scene, repeat: 12.5)
    assert read_info(generate(config(tmp_path / "timed", **few))).rate == 12.5


def test_what_a_script_cannot_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="task 'there': 3 attempts, and none would begin undone and end with"):
        generate(config(tmp_path / "a", horizon=2, attempts=3))
    with pytest.raises(EpisodeError, match="none would fail by 'near' without a moment of success"):
        generate(config(tmp_path / "b", demonstrations=0, horizon=2, attempts=3, kinds=("near",)))
    with pytest.raises(EnvError, match="unknown environment 'moon'"):
        generate(replace(config(tmp_path / "c"), scene="moon"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"demonstrations": -1}, "demonstrations must be at least 0"),
    ({"horizon": 0}, "horizon must be at least 1"),
    ({"chain": 0}, "chain must be at least 1"),
    ({"kinds": ()}, "no kinds of them"),
    ({"prior": ("point",)}, "a scene comes twice"),
    ({"prior": ("a", "a")}, "a scene comes twice"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_settings_without_a_meaning_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        config(tmp_path, **settings)


@pytest.mark.slow
def test_a_pair_of_meta_world_and_prior_data_of_another(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    settings = GenerateConfig(
        str(tmp_path), "metaworld:window", demonstrations=1, failures=2, prior=("metaworld:drawer",),
        prior_demonstrations=1, chain=2,
    )  # fmt: skip
    episodes = list(read_episodes(generate(settings)))
    assert Counter((e.task.name, str(e.source)) for e in episodes) == {
        ("window-open", "demonstration"): 1,
        ("window-close", "demonstration"): 1,
        ("window-open", "failure"): 2,
        ("window-close", "failure"): 2,
        ("drawer-open", "prior"): 1,
        ("drawer-close", "prior"): 1,
    }
    assert all(e.succeeded == (e.source is not Source.FAILURE) for e in episodes)
    assert len({e.task.instruction for e in episodes}) == 4
