"""Where a robot's success model lives, in each collector or in an actor of its own, and what a ranker learns from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.build.robot_reward import Reward, hosted, lives_apart, ranker
from align.recipe.load import load
from cluster.host import connect
from rewards.success.backbone import BackboneConfig, BackboneModel
from rewards.success.batched import BatchedModel
from rewards.success.detector import Detector, DetectorConfig
from rewards.success.errors import SuccessError
from rewards.success.frames import FrameConfig, frames_of
from rewards.success.head import HeadConfig
from tests.rewards.success.toys import LEFT, RIGHT, demonstrations, failures, frames_at

SMOKE = Path(__file__).resolve().parents[3] / "recipes" / "smoke" / "robot.yaml"


def recipe(*overrides: str) -> Any:
    return load(SMOKE, overrides)


@pytest.mark.parametrize(
    ("reward", "apart"),
    [
        ("{type: truth}", False),
        ("{type: backbone}", False),
        ("{type: backbone, own_actor: true}", True),
        ("{type: vlm, model: folder}", True),
        ("{type: vlm, model: folder, own_actor: false}", False),
    ],
)
def test_a_large_model_lives_apart_unless_the_recipe_says_otherwise(reward: str, apart: bool) -> None:
    assert lives_apart(recipe(f"reward={reward}")) is apart


def test_collectors_read_the_model_or_call_the_one_that_is_hosted(tmp_path: Path) -> None:
    head = HeadConfig(filters=8, kernel=2, steps=50, learning_rate=1e-2)
    model = BackboneModel(BackboneConfig(backbone="random", grid=3, views=1, folds=2, head=head))
    model.fit(frames_of([*demonstrations(3), *failures(3)], FrameConfig()))
    model.save(tmp_path / "reward")
    own = Reward(tmp_path / "reward", DetectorConfig(consecutive=1), {})
    cluster = connect("local")
    apart = hosted(recipe("reward={type: backbone, own_actor: true}"), own, cluster)
    assert isinstance(own.model(), BackboneModel) and own.model() is not own.model()
    assert isinstance(apart.model(), BatchedModel) and apart.model() is apart.model()
    frames = frames_at(np.linspace(0, 1, 5).tolist())
    told = []
    for reward in (own, apart):
        detector = Detector(reward.model(), reward.detector, reward.boxes)
        detector.reset(RIGHT)
        told.append([detector.detect({key: array[row] for key, array in frames.items()}) for row in range(5)])
    assert told[0] == told[1], "one collector alone is told the same, bit for bit"
    assert not told[0][0].success and told[0][-1].success
    cluster.close()


def test_a_ranker_takes_demonstrations_for_likelier_than_failures() -> None:
    resolved = recipe("ranker={bonus: 1.0, steps: 100}")
    judge = ranker(resolved, [*demonstrations(5), *failures(5)], [RIGHT])
    like, unlike = (judge.probabilities(group).mean() for group in (demonstrations(3, seed=7), failures(3, seed=70)))
    assert like > unlike
    assert ranker(recipe(), [], [RIGHT]) is None


def test_a_ranker_that_could_judge_nothing_is_refused_before_the_run() -> None:
    resolved = recipe("ranker={bonus: 1.0}")
    with pytest.raises(SuccessError, match="ranker: the prior data hold no failures at 'right'"):
        ranker(resolved, demonstrations(3), [RIGHT])
    with pytest.raises(SuccessError, match="ranker: the prior data do not show 'left'"):
        ranker(resolved, [*demonstrations(3), *failures(3)], [RIGHT, LEFT])
