"""What every success model must do, and the frozen backbone with its heads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.success.backbone import BackboneConfig, BackboneModel
from rewards.success.errors import SuccessError
from rewards.success.features import installed
from rewards.success.frames import FrameConfig, LabelledFrames, frames_of
from rewards.success.head import HeadConfig, Views, head_logits, train_head
from rewards.success.load import load_model
from rewards.success.model import SuccessModel, compute_reward
from rewards.success.vlm import LoraSettings, VLMConfig, VLMModel
from rollouts.envs.types import IMAGE, Task
from tests.rewards.success.tiny_vlm import build_tiny_vlm
from tests.rewards.success.toys import LEFT, RIGHT, demonstrations, failures, frames_at

HEAD = HeadConfig(filters=8, kernel=2, steps=100, learning_rate=1e-2)
RANDOM = BackboneConfig(backbone="random", grid=3, views=2, shift=1, folds=3, head=HEAD, max_false_positive_rate=0.0)
WITH_STATE = BackboneConfig(backbone="random", grid=2, views=1, folds=2, head=HEAD, state_dimensions=(0,))
IMAGENET = BackboneConfig(backbone="efficientnet-lite0", grid=3, views=2, shift=1, folds=2, head=HEAD)

needs_weights = pytest.mark.skipif(not installed(), reason="the EfficientNet-Lite0 packages are not installed")
KINDS = ["random", "state", pytest.param("imagenet", marks=needs_weights), "vlm"]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SuccessModel]:
    def make(kind: str) -> SuccessModel:
        if kind != "vlm":
            return BackboneModel({"random": RANDOM, "state": WITH_STATE, "imagenet": IMAGENET}[kind])
        folder = tmp_path_factory.getbasetemp() / "tiny-vlm"
        if not folder.exists():
            build_tiny_vlm(folder)
        lora = LoraSettings(learning_rate=1e-2, steps=150, batch_size=16)
        return VLMModel(VLMConfig(str(folder), question="is the square at the {name} ?", lora=lora))

    return make


@pytest.fixture(scope="module")
def pair() -> LabelledFrames:
    episodes = [*demonstrations(5), *failures(4), *demonstrations(5, LEFT, seed=2), *failures(4, LEFT, seed=90)]
    return frames_of(episodes, FrameConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_model_keeps_the_contract(
    kind: str, build: Callable[[str], SuccessModel], pair: LabelledFrames, tmp_path: Path
) -> None:
    model = build(kind)
    metrics = model.fit(pair)
    assert all(key.startswith("fit/") and np.isfinite(value) for key, value in metrics.items())
    look = frames_at([0.2, 0.5, 0.97, 1.0])
    found = model.probabilities(look, RIGHT)
    assert found.dtype == np.float32 and found.shape == (4,)
    assert ((found >= 0) & (found <= 1)).all()
    assert 0 < model.threshold(RIGHT) <= 1
    np.testing.assert_array_equal(found, model.probabilities(look, RIGHT))
    alone = [model.probabilities({k: v[i : i + 1] for k, v in look.items()}, RIGHT)[0] for i in range(4)]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert model.probabilities({k: v[:0] for k, v in look.items()}, RIGHT).shape == (0,)
    assert found[3] > found[:2].max()  # it has learned which end is which
    assert model.probabilities(frames_at([0.0, 0.6]), LEFT)[0] > model.probabilities(frames_at([0.0, 0.6]), LEFT)[1]
    json.dumps(model.describe(), allow_nan=False)
    model.save(tmp_path / "model")
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_allclose(again.probabilities(look, RIGHT), found, atol=1e-6)
    assert again.threshold(RIGHT) == model.threshold(RIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_picture_is_refused(kind: str, build: Callable[[str], SuccessModel], pair: LabelledFrames) -> None:
    model = build(kind)
    if kind != "vlm":  # which answers unfitted
        model.fit(pair)
    with pytest.raises(SuccessError, match="uint8"):
        model.probabilities({IMAGE: np.zeros((2, 24, 24, 3), np.float32)}, RIGHT)
    with pytest.raises(SuccessError, match="have no 'image'"):
        model.probabilities({}, RIGHT)


def test_rewards_are_minus_one_and_zero(pair: LabelledFrames) -> None:
    model = BackboneModel(WITH_STATE)
    model.fit(pair)
    rewards = compute_reward(model, frames_at([0.1, 1.0]), RIGHT)
    assert rewards.tolist() == [-1.0, 0.0]
    assert rewards.dtype == np.float32


def test_a_task_that_was_not_fitted_is_refused(pair: LabelledFrames) -> None:
    model = BackboneModel(WITH_STATE)
    with pytest.raises(SuccessError, match="'right' was not among those fitted"):
        model.threshold(RIGHT)
    model.fit(pair)
    with pytest.raises(SuccessError, match="'up' was not among those fitted"):
        model.probabilities(frames_at([0.1]), Task("up", "move up"))


def test_the_state_must_be_there_where_it_is_read(pair: LabelledFrames) -> None:
    model = BackboneModel(WITH_STATE)
    model.fit(pair)
    with pytest.raises(SuccessError, match="state dimensions"):
        model.probabilities({IMAGE: frames_at([0.1])[IMAGE]}, RIGHT)
    wide = BackboneModel(BackboneConfig(backbone="random", state_dimensions=(7,)))
    with pytest.raises(SuccessError, match="states have 2 dimensions"):
        wide.fit(pair)


def test_held_out_rates_are_those_at_the_threshold(pair: LabelledFrames) -> None:
    model = BackboneModel(RANDOM)
    metrics = model.fit(pair)
    assert metrics["fit/right/false_positive_rate"] == 0  # max_false_positive_rate is 0
    assert metrics["fit/right/threshold"] == model.threshold(RIGHT) >= 0.5
    assert metrics["fit/right/done"] == 15
    assert metrics["fit/right/undone"] == 5 * 7 + 4 * 9 + 15


def test_fitting_is_reproducible_whatever_the_global_generator(pair: LabelledFrames) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = BackboneModel(RANDOM)
        model.fit(pair)
        found.append(model.probabilities(frames_at([0.3, 0.9]), RIGHT))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(SuccessError, match="a folder that a success model saved"):
        load_model(tmp_path)
    (tmp_path / "success.json").write_text("{")
    with pytest.raises(SuccessError, match="cannot be read"):
        load_model(tmp_path)
    (tmp_path / "success.json").write_text('{"kind": "oracle"}')
    with pytest.raises(SuccessError, match="unknown kind of success model 'oracle'"):
        load_model(tmp_path)


def test_a_folder_of_another_version_says_so(pair: LabelledFrames, tmp_path: Path) -> None:
    model = BackboneModel(RANDOM)
    model.fit(pair)
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "success.json"
    file.write_text(file.read_text().replace('"filters"', '"neurons"'))
    with pytest.raises(SuccessError, match="was saved by another version of Polestar; fit it again"):
        load_model(tmp_path / "model")


@needs_weights
def test_heads_are_not_put_on_other_features(pair: LabelledFrames, tmp_path: Path) -> None:
    model = BackboneModel(RANDOM)
    model.fit(pair)
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "success.json"
    file.write_text(file.read_text().replace('"backbone": "random"', '"backbone": "efficientnet-lite0"'))
    with pytest.raises(SuccessError, match="trained on random/0, and here there is efficientnet-lite0/5"):
        load_model(tmp_path / "model")


def test_a_head_finds_a_mark_in_places_where_it_never_was() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(200, 1, 2, 9, 9)).astype(np.float16)
    done = np.arange(200) < 40
    for row in range(40):
        maps[row, 0, 1, 2:4, 1 + row % 3] = 6  # always in the left upper part
    head = train_head(Views(maps, np.zeros((200, 0), np.float32)), done, HeadConfig(steps=300, learning_rate=1e-2), 0)
    fresh = rng.normal(size=(100, 1, 2, 9, 9)).astype(np.float16)
    fresh[:50, 0, 1, 5:7, 5] = 6
    logits = head_logits(head, Views(fresh, np.zeros((100, 0), np.float32)))
    assert (logits[:50] > 0).mean() > 0.8
    assert (logits[50:] < 0).mean() > 0.8


def test_a_head_uses_the_state_and_ignores_what_never_moved() -> None:
    rng = np.random.default_rng(0)
    states = np.c_[rng.normal(size=300), np.full(300, 3.0)].astype(np.float32)
    maps = np.zeros((300, 1, 1, 3, 3), np.float16)
    head = train_head(Views(maps, states), states[:, 0] > 1, HeadConfig(steps=300, learning_rate=1e-2), 0)
    fresh = np.array([[2.5, 3.0], [-1.0, 3.0], [2.5, 99.0], [-1.0, -99.0]], np.float32)
    logits = head_logits(head, Views(maps[:4], fresh))
    assert (logits > 0).tolist() == [True, False, True, False]


def test_what_a_head_cannot_learn_from_is_refused() -> None:
    maps, states = np.zeros((3, 1, 1, 3, 3), np.float16), np.zeros((3, 0), np.float32)
    with pytest.raises(SuccessError, match="done and undone"):
        train_head(Views(maps, states), np.ones(3, np.bool_), HeadConfig(), 0)
    with pytest.raises(SuccessError, match="maps of 3 by 3 cells are smaller than a filter of 5"):
        train_head(Views(maps, states), np.array([True, False, False]), HeadConfig(kernel=5), 0)
    with pytest.raises(ValueError, match="at least 1 filter"):
        HeadConfig(filters=0)
    with pytest.raises(ValueError, match="dropout"):
        HeadConfig(dropout=1.0)
