"""Success from a vision-language model that is asked whether the task is done."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rewards.success.answers import answer_tokens
from rewards.success.calibration import choose_threshold
from rewards.success.confusion import confusion
from rewards.success.errors import SuccessError
from rewards.success.frames import Integers, LabelledFrames, episode_folds
from rewards.success.model import Probabilities, images_of, write_folder
from rollouts.envs.types import IMAGE, Observation, Task
from rollouts.models import no_progress_bars, resolve

QUESTION = "The robot's task: {instruction}. Is the task done? Answer yes or no."
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) beside frozen weights, and how they are trained.

    Batches hold as many frames done as undone; the loss is the cross-entropy of the two-way choice between yes and no,
    which is what is read later. ``target_modules`` as in peft.
    """

    rank: int = 8
    alpha: float = 16.0
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = 2e-4
    steps: int = 200
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 1 or self.batch_size < 2:
            raise ValueError("an adapter needs a rank of at least 1, 1 step and 2 examples a batch")


@dataclass(frozen=True, slots=True)
class VLMConfig:
    """``model`` is a name for :func:`rollouts.models.resolve`: any image-text-to-text model of transformers.

    ``question`` may hold ``{instruction}`` and ``{name}`` of the task; the processor's chat template puts it in form
    where there is one. ``yes`` and ``no`` are the spellings whose single tokens count together. A task is called done
    where ``P(yes) / (P(yes) + P(no))`` reaches ``threshold`` (0.5: where yes is likelier than no, as in RoboFuME,
    arXiv 2310.15145). With ``max_false_positive_rate`` the threshold is raised in :meth:`VLMModel.fit`, for each task,
    until no more than that share of the undone frames of held-out episodes (one part in ``folds``) is called done.
    """

    model: str
    question: str = QUESTION
    yes: tuple[str, ...] = ("yes", "Yes", " yes", " Yes", "YES")
    no: tuple[str, ...] = ("no", "No", " no", " No", "NO")
    threshold: float = 0.5
    max_false_positive_rate: float | None = None
    folds: int = 5
    batch_size: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    lora: LoraSettings = field(default_factory=LoraSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, got {self.threshold}")
        if self.batch_size < 1 or self.folds < 2:
            raise ValueError("batch_size must be at least 1 and folds at least 2")
        if self.max_false_positive_rate is not None and not 0 <= self.max_false_positive_rate < 1:
            raise ValueError("max_false_positive_rate must be at least 0 and below 1")
        try:
            self.question.format(instruction="", name="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("question may hold {instruction} and {name} in braces, and nothing else") from error


class VLMModel:
    """Implements :class:`rewards.success.model.SuccessModel`; before :meth:`fit` it answers zero-shot, for any task."""

    def __init__(self, config: VLMConfig) -> None:
        self.config = config
        self._folder = resolve(config.model)
        self._processor = load_processor(self._folder)
        self._tokens = answer_tokens(self._processor.tokenizer, config.yes, config.no)
        self._model = self._read_model()
        self._fitted = False
        self._thresholds: dict[str, float] = {}

    def probabilities(self, observations: Observation, task: Task) -> Probabilities:
        """See :class:`rewards.success.model.SuccessModel`; the state is not looked at."""
        images = images_of(observations, IMAGE)
        with torch.inference_mode():
            odds = [
                self._log_odds(images[start : start + self.config.batch_size], [task]).cpu()
                for start in range(0, len(images), self.config.batch_size)
            ]
        if not odds:
            return np.zeros(0, np.float32)
        made: Probabilities = torch.sigmoid(torch.cat(odds)).numpy()
        return made

    def threshold(self, task: Task) -> float:
        """See :class:`rewards.success.model.SuccessModel`."""
        return self._thresholds.get(task.name, self.config.threshold)

    def fit(self, frames: LabelledFrames) -> dict[str, float]:
        """Trains new adapters; rates are of held-out episodes. See :class:`rewards.success.model.SuccessModel`."""
        learned = [index for index in range(len(frames.tasks)) if frames.done[frames.of(index)].any()]
        if not learned:
            raise SuccessError("no episode shows any task done; give demonstrations")
        train, held_out = self._split(frames, learned)
        self._thresholds = {}
        metrics = {"fit/loss": self._train(frames, train)}
        for index in learned:
            rows = held_out[frames.task[held_out] == index]
            metrics |= self._examine(frames, rows, frames.tasks[index])
        return metrics

    def save(self, folder: Path) -> None:
        """See :class:`rewards.success.model.SuccessModel`; the adapter alone, beside the base model's name."""

        def write(made: Path) -> None:
            if self._fitted:
                self._model.save_pretrained(made / ADAPTER_FOLDER)

        write_folder(folder, "vlm", self.describe(), write)

    @classmethod
    def load(cls, folder: Path, about: Mapping[str, Any]) -> "VLMModel":
        """What :meth:`save` wrote; ``about`` is the model's description."""
        settings = dict(about["config"])
        lora = dict(settings["lora"])
        if not isinstance(lora["target_modules"], str):
            lora["target_modules"] = tuple(lora["target_modules"])
        settings |= {"lora": LoraSettings(**lora), "yes": tuple(settings["yes"]), "no": tuple(settings["no"])}
        model = cls(VLMConfig(**settings))
        model._thresholds = dict(about["thresholds"])
        if about["fitted"]:
            from peft import PeftModel

            model._model = PeftModel.from_pretrained(model._model, str(folder / ADAPTER_FOLDER))
            model._model.train(False)
            model._fitted = True
        return model

    def describe(self) -> dict[str, Any]:
        """See :class:`rewards.success.model.SuccessModel`."""
        return {"config": asdict(self.config), "fitted": self._fitted, "thresholds": dict(self._thresholds)}

    def _read_model(self) -> Any:
        from transformers import AutoModelForImageTextToText

        with no_progress_bars():
            model: Any = AutoModelForImageTextToText.from_pretrained(
                str(self._folder), dtype=getattr(torch, self.config.dtype)
            )
        model.train(False)
        return model.requires_grad_(False).to(self.config.device)

    def _log_odds(self, images: NDArray[np.uint8], tasks: Sequence[Task]) -> Tensor:
        """[B] of images [B, H, W, 3]; ``tasks`` has one entry for each, or one for all.

        Rows are padded on the left, so that the answer's place is the last one in all of them.
        """
        batch = self._prepare(images, list(tasks) * (len(images) if len(tasks) == 1 else 1))
        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        if "logits_to_keep" in signature(base.forward).parameters:
            batch["logits_to_keep"] = 1
        return self._tokens.log_odds(self._model(**batch).logits[:, -1])

    def _prepare(self, images: NDArray[np.uint8], tasks: Sequence[Task]) -> dict[str, Any]:
        from PIL import Image

        pictures = [[Image.fromarray(image)] for image in images]
        questions = [self.config.question.format(instruction=task.instruction, name=task.name) for task in tasks]
        texts = [question_text(self._processor, question) for question in questions]
        start = self._processor.tokenizer.bos_token
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        if start and texts[0].startswith(start):
            options["add_special_tokens"] = False  # the template has written it
        batch = self._processor(images=pictures, text=texts, **options)
        dtype = getattr(torch, self.config.dtype)
        return {
            key: (value.to(dtype) if value.is_floating_point() else value).to(self.config.device)
            for key, value in batch.items()
        }

    def _split(self, frames: LabelledFrames, learned: Sequence[int]) -> tuple[Integers, Integers]:
        """Examples to train on and to hold out. The fold of an episode is that of its own task's demonstrations, so
        that no frame is on both sides."""
        held: set[int] = set()
        for index in learned:
            rows = frames.of(index)
            fold = episode_folds(frames, rows, self.config.folds, self.config.seed)
            own = np.isin(frames.episode[rows], _own_episodes(frames, index))
            held |= set(frames.episode[rows[(fold == 0) & own]].tolist())
        out = np.isin(frames.episode, sorted(held))
        kept = np.isin(frames.task, learned)
        return np.flatnonzero(~out & kept), np.flatnonzero(out & kept)

    def _train(self, frames: LabelledFrames, rows: Integers) -> float:
        """New adapters, trained on the examples ``rows``; the mean loss of the last tenth of the steps, in nats."""
        from peft import LoraConfig, get_peft_model

        settings = self.config.lora
        targets = settings.target_modules
        lora = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float will do
            target_modules=targets if isinstance(targets, str) else list(targets),
        )
        if self._fitted:
            self._model = self._read_model()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._model = get_peft_model(self._model, lora)
        self._model.eval()  # dropout off: every part is frozen but the adapters
        self._fitted = True
        optimiser = torch.optim.AdamW([p for p in self._model.parameters() if p.requires_grad], settings.learning_rate)
        rng = np.random.default_rng([self.config.seed, 3])
        classes = [rows[frames.done[rows]], rows[~frames.done[rows]]]
        if not all(map(len, classes)):
            raise SuccessError("fine-tuning needs frames of tasks done and undone; give demonstrations and failures")
        half = settings.batch_size // 2
        labels = torch.cat((torch.ones(half), torch.zeros(half))).to(self.config.device)
        losses: list[float] = []
        for _ in range(settings.steps):
            chosen = np.concatenate([rng.choice(of, half) for of in classes])
            tasks = [frames.tasks[index] for index in frames.task[chosen]]
            loss = binary_cross_entropy_with_logits(self._log_odds(frames.images[frames.frame[chosen]], tasks), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
        self._model.requires_grad_(False)
        return float(np.mean(losses[-max(1, len(losses) // 10) :]))

    def _examine(self, frames: LabelledFrames, rows: Integers, task: Task) -> dict[str, float]:
        probabilities = self.probabilities({IMAGE: frames.images[frames.frame[rows]]}, task)
        done = frames.done[rows]
        if self.config.max_false_positive_rate is not None:
            self._thresholds[task.name] = choose_threshold(
                probabilities, done, self.config.max_false_positive_rate, self.config.threshold
            )
        counts = confusion(probabilities >= self.threshold(task), done)
        found = {
            "threshold": self.threshold(task),
            "false_positive_rate": counts.false_positive_rate,
            "false_negative_rate": counts.false_negative_rate,
            "precision": counts.precision,
        }
        return {f"fit/{task.name}/{name}": value for name, value in found.items() if value is not None}


def load_processor(folder: Path) -> Any:
    """The processor of an image-text-to-text model, padding on the left; :class:`SuccessError` where there is none."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(folder))  # type: ignore[no-untyped-call]
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SuccessError(f"model '{folder}': its processor cannot be loaded ({reason}); some need the package "
                           "torchvision, LLaVA's does not") from error  # fmt: skip
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise SuccessError(f"model '{folder}' does not read images and text; give an image-text-to-text model")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def question_text(processor: Any, question: str) -> str:
    """The prompt with one image and ``question``, up to where the answer begins."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text
    return f"{getattr(processor, 'image_token', '<image>')}\n{question}\n"


def _own_episodes(frames: LabelledFrames, task: int) -> Integers:
    """The episodes whose own task is ``task``, and all failures: those not there for their end alone."""
    rows = frames.of(task)
    others = frames.episode[(frames.task != task) & frames.done]
    return np.setdiff1d(frames.episode[rows], others)
