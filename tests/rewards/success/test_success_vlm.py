"""The vision-language model: the answer is read where it stands, and fine-tuning teaches it the task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.success.answers import answer_tokens
from rewards.success.errors import SuccessError
from rewards.success.frames import FrameConfig, LabelledFrames, frames_of
from rewards.success.load import load_model
from rewards.success.vlm import LoraSettings, VLMConfig, VLMModel, question_text
from rollouts.envs.types import IMAGE, Task
from tests.rewards.success.tiny_vlm import WORDS, build_tiny_vlm
from tests.rewards.success.toys import LEFT, RIGHT, demonstrations, failures, frames_at

QUESTION = "is the square at the {name} ?"
LONG = Task("right now", "move right now")
LORA = LoraSettings(rank=8, alpha=16, learning_rate=1e-2, steps=150, batch_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_vlm(tmp_path_factory.mktemp("vlm") / "llava")


def settings(folder: Path, **changed: object) -> VLMConfig:
    return VLMConfig(str(folder), question=QUESTION, lora=LORA, **changed)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def examples() -> LabelledFrames:
    return frames_of([*demonstrations(6), *failures(6)], FrameConfig())


@pytest.fixture(scope="module")
def fitted(folder: Path, examples: LabelledFrames) -> tuple[VLMModel, dict[str, float]]:
    model = VLMModel(settings(folder))
    return model, model.fit(examples)


def test_the_answer_is_read_from_the_plain_models_next_token(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    observations = frames_at([0.0, 0.5, 1.0])
    found = VLMModel(settings(folder)).probabilities(observations, RIGHT)
    processor = AutoProcessor.from_pretrained(folder)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    text = "<s>user : <image> is the square at the right ? assistant :"
    for image, probability in zip(observations[IMAGE], found, strict=True):
        batch = processor(images=Image.fromarray(image), text=text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores = plain(**batch).logits[0, -1].softmax(0)
        yes, no = scores[WORDS.index("yes")].item(), scores[WORDS.index("no")].item()
        assert probability == pytest.approx(yes / (yes + no), abs=1e-5)
        assert (probability > 0.5) == (yes > no)


def test_batches_and_padding_on_the_left_change_nothing(folder: Path) -> None:
    model = VLMModel(settings(folder))
    images = frames_at(np.linspace(0, 1, 6).tolist())[IMAGE]
    tasks = [RIGHT, LONG, RIGHT, LEFT, LONG, RIGHT]  # questions of two lengths in one batch
    batch = model._prepare(images, tasks)
    starts = batch["attention_mask"].argmax(1).tolist()
    assert starts == [1, 0, 1, 1, 0, 1]
    assert batch["attention_mask"][:, -1].all()
    assert (batch["input_ids"] == 1).sum(1).tolist() == [1] * 6  # <s> once: the template has written it
    with torch.no_grad():
        together = model._log_odds(images, tasks)
        alone = torch.cat([model._log_odds(images[i : i + 1], [task]) for i, task in enumerate(tasks)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    for size in (1, 4, 16):
        other = VLMModel(settings(folder, batch_size=size))
        np.testing.assert_allclose(
            other.probabilities({IMAGE: images}, RIGHT), model.probabilities({IMAGE: images}, RIGHT), atol=1e-6
        )


def test_fine_tuning_takes_it_from_chance_to_sight(folder: Path, fitted: tuple[VLMModel, dict[str, float]]) -> None:
    places = np.random.default_rng(3).uniform(0, 0.7, 40).tolist() + np.linspace(0.92, 1.0, 40).tolist()
    fresh, done = frames_at(places, seed=77), np.array([False] * 40 + [True] * 40)
    before = VLMModel(settings(folder)).probabilities(fresh, RIGHT) > 0.5
    model, metrics = fitted
    after = model.probabilities(fresh, RIGHT) > 0.5
    balanced = [((called == done)[done].mean() + (called == done)[~done].mean()) / 2 for called in (before, after)]
    assert balanced[0] < 0.65
    assert balanced[1] > 0.9
    assert metrics["fit/loss"] < 0.3
    assert metrics["fit/right/false_positive_rate"] < 0.2
    assert metrics["fit/right/false_negative_rate"] < 0.2


def test_fitting_is_reproducible_and_starts_afresh(
    folder: Path, examples: LabelledFrames, fitted: tuple[VLMModel, dict[str, float]]
) -> None:
    few = VLMConfig(str(folder), question=QUESTION, lora=LoraSettings(learning_rate=1e-2, steps=5))
    look = frames_at([0.1, 0.9])
    one, two = VLMModel(few), VLMModel(few)
    torch.manual_seed(1)
    one.fit(examples)
    torch.manual_seed(2)
    two.fit(examples)
    first = one.probabilities(look, RIGHT)
    np.testing.assert_array_equal(first, two.probabilities(look, RIGHT))
    one.fit(examples)
    np.testing.assert_array_equal(first, one.probabilities(look, RIGHT))


def test_saved_and_loaded_it_says_the_same(
    tmp_path: Path, folder: Path, fitted: tuple[VLMModel, dict[str, float]]
) -> None:
    look = frames_at([0.1, 0.5, 0.95])
    for model in (fitted[0], VLMModel(settings(folder))):
        model.save(tmp_path / "kept")
        again = load_model(tmp_path / "kept")
        np.testing.assert_allclose(again.probabilities(look, RIGHT), model.probabilities(look, RIGHT), atol=1e-6)
        assert again.describe() == model.describe()
    assert not (tmp_path / "kept" / "adapter").exists()  # the second model was never fitted, and replaced the first
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.slow
def test_a_wanted_false_positive_rate_raises_the_threshold(folder: Path, examples: LabelledFrames) -> None:
    model = VLMModel(settings(folder, max_false_positive_rate=0.0))
    metrics = model.fit(examples)
    assert metrics["fit/right/false_positive_rate"] == 0
    assert model.threshold(RIGHT) == metrics["fit/right/threshold"] >= 0.5
    assert model.threshold(LEFT) == 0.5


def test_held_out_episodes_are_in_no_training_frame(folder: Path) -> None:
    both = [*demonstrations(4), *demonstrations(4, LEFT, seed=3), *failures(3), *failures(3, LEFT, seed=80)]
    frames = frames_of(both, FrameConfig())
    train, held = VLMModel(settings(folder))._split(frames, [0, 1])
    assert not set(frames.episode[train].tolist()) & set(frames.episode[held].tolist())
    assert len(train) + len(held) == len(frames)
    for task in (0, 1):
        rows = held[frames.task[held] == task]
        assert frames.done[rows].any() and not frames.done[rows].all()


def test_without_a_chat_template_the_image_comes_first(tmp_path: Path) -> None:
    folder = build_tiny_vlm(tmp_path / "bare", template=None)
    model = VLMModel(settings(folder))
    assert question_text(model._processor, "is it ?") == "<image>\nis it ?\n"
    assert model._prepare(frames_at([0.5])[IMAGE], [RIGHT])["input_ids"][0, :2].tolist() == [1, 3]
    assert np.isfinite(model.probabilities(frames_at([0.5]), RIGHT)).all()


def test_a_tokenizer_without_yes_or_no_is_refused(tmp_path: Path) -> None:
    folder = build_tiny_vlm(tmp_path / "mute", [*WORDS[:-2], "ye", "non"])
    with pytest.raises(SuccessError, match="as a single token"):
        VLMModel(settings(folder))


class Spelled:
    """A tokenizer of letters, but for a few whole words."""

    unk_token_id = 0
    all_special_ids = (0, 1)
    words = {"yes": 5, " yes": 6, "Yes": 5, "no": 7, "<s>": 1}  # noqa: RUF012

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.words[text]] if text in self.words else [10 + ord(letter) % 50 for letter in text]


def test_only_whole_single_tokens_count_and_all_together() -> None:
    tokens = answer_tokens(Spelled(), ("yes", "Yes", " yes", "YES"), ("no", "nope"))
    assert (tokens.yes, tokens.no) == ((5, 6), (7,))
    logits = torch.full((1, 8), -50.0)
    logits[0, 5], logits[0, 6], logits[0, 7] = np.log(0.2), np.log(0.3), np.log(0.1)
    assert tokens.log_odds(logits).item() == pytest.approx(np.log(5))
    with pytest.raises(SuccessError, match="single token"):
        answer_tokens(Spelled(), ("<s>",), ("no",))
    with pytest.raises(SuccessError, match="share a token"):
        answer_tokens(Spelled(), ("yes",), ("Yes",))


def test_a_question_with_other_braces_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="question may hold"):
        VLMConfig(str(folder), question="is {it} done?")
