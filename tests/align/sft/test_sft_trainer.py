"""TRL's trainer as it is set up here: what carries loss, what is saved, how updates are counted."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from align.learners.adapters import AdapterConfig
from align.sft.config import SFTConfig, SFTRun, WorkedData
from align.sft.trainer import NAMES, build_trainer, save_policy, total_steps
from align.supervised import Checkpoints, Forward, Progress
from rollouts.chat import ChatRenderer
from rollouts.engines.hf_engine import HFEngine
from rollouts.models import load_causal_lm, load_tokenizer
from rollouts.types import Message, Prompt

ANSWERS = {"4 + 3 =": "7", "2 + 6 =": "8", "9 - 12 =": "9 - 12 = -3", "5 + 5 =": "10", "1 + 1 =": "2"}
CHATS = [
    {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
    for q, a in ANSWERS.items()
]
TEXTS = [{"prompt": q, "completion": " " + a} for q, a in ANSWERS.items()]


def run(model: Path, **sft: Any) -> SFTRun:
    settings: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "micro_batch_size": 4, "log_every": 1, "decay": "constant"}
    return SFTRun(str(model), WorkedData(), dtype="float32", sft=SFTConfig(**(settings | sft)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_causal_lm(folder, torch.float32).state_dict())


def trained(model: Path, folder: Path, config: SFTRun) -> tuple[Path, list[dict[str, float]]]:
    """The policy's folder after training, and the metrics of every step."""
    logged: list[dict[str, float]] = []
    checkpoints = Checkpoints(folder / "checkpoints", dict)
    progress = Progress()
    forward = Forward(lambda step, metrics: logged.append(dict(metrics)), checkpoints, progress, NAMES)
    trainer = build_trainer(config, model, CHATS, checkpoints.folder, [forward])
    trainer.train()
    save_policy(trainer, config.dtype, folder / "policy")
    return folder / "policy", [*logged, progress.last]


@pytest.mark.parametrize("records", [CHATS, TEXTS], ids=["conversational", "standard"])
def test_the_prompt_and_the_padding_carry_no_loss(
    tiny_model: Path, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(run(tiny_model, batch_size=5, micro_batch_size=5), tiny_model, records, tmp_path)
    tokenizer = load_tokenizer(tiny_model)
    [batch] = list(trainer.get_train_dataloader())
    seen = {}
    for ids, labels, attended in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        carries = labels != -100
        start = int(carries.nonzero()[0])
        assert torch.equal(labels[carries], ids[carries])
        assert not carries[:start].any() and carries[start : int(attended.sum())].all()
        assert not carries[int(attended.sum()) :].any()
        seen[tuple(ids[:start].tolist())] = tokenizer.decode(ids[carries])
    if records is TEXTS:
        expected = {tuple(tokenizer.encode(r["prompt"])): r["completion"] + "<|im_end|>" for r in TEXTS}
    else:
        # The prompt is to the token what the engines are asked, and the end of the turn is learnt.
        renderer = ChatRenderer(tokenizer)
        expected = {
            renderer.prompt_ids(Prompt("x", (Message("user", q),))): f"{a}<|im_end|>\n" for q, a in ANSWERS.items()
        }
    assert seen == expected


def test_the_loss_falls_and_the_saved_policy_holds_what_it_was_taught(tiny_model: Path, tmp_path: Path) -> None:
    policy, logged = trained(tiny_model, tmp_path, run(tiny_model, epochs=40))
    assert logged[-1]["loss/total"] < 0.1 * logged[0]["loss/total"]
    assert set(logged[0]) == {
        "loss/total", "optim/lr", "optim/grad_norm", "sft/token_entropy", "sft/token_accuracy", "sft/epoch",
    }  # fmt: skip
    # 5 examples in batches of 4 are 2 updates an epoch.
    assert len(logged) == 80 == total_steps(run(tiny_model, epochs=40), 5)
    before, after = answer_logps(tiny_model), answer_logps(policy)
    assert all(after[question] > before[question] + 3.0 for question in ANSWERS)


def answer_logps(model: Path) -> dict[str, float]:
    """Log-probability of every taught answer with its end, in nats, under the model in a folder."""
    renderer = ChatRenderer(load_tokenizer(model))
    engine = HFEngine(model, max_context=64)
    scored = {}
    for question, answer in ANSWERS.items():
        ids = renderer.prompt_ids(Prompt("x", (Message("user", question),)))
        scored[question] = sum(engine.logprobs([(*ids, *renderer.answer_ids(answer))])[0][len(ids) - 1 :])
    engine.close()
    return scored


def test_small_passes_add_up_to_one_update(tiny_model: Path, tmp_path: Path) -> None:
    whole, _ = trained(tiny_model, tmp_path / "whole", run(tiny_model, lr=1e-3))
    parts, _ = trained(tiny_model, tmp_path / "parts", run(tiny_model, lr=1e-3, micro_batch_size=1))
    start, one, four = weights(tiny_model), weights(whole), weights(parts)
    for name, tensor in one.items():
        assert torch.allclose(tensor, four[name], atol=2e-5), name
    assert any(not torch.allclose(tensor, start[name], atol=2e-4) for name, tensor in one.items())


def test_a_policy_is_saved_in_the_runs_own_format(tiny_model: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(run(tiny_model), dtype="bfloat16")
    policy, logged = trained(tiny_model, tmp_path, config)
    assert logged[-1]["loss/total"] > 0
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(policy / "model.safetensors").values()} == {torch.bfloat16}
    assert load_tokenizer(policy).chat_template == load_tokenizer(tiny_model).chat_template
    assert not policy.with_name("policy.part").exists()


def test_an_adapter_is_merged_into_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    config = run(tiny_model, epochs=4, lora=AdapterConfig(rank=2, alpha=8))
    policy, logged = trained(tiny_model, tmp_path, config)
    assert logged[-1]["loss/total"] < logged[0]["loss/total"]
    start, end = weights(tiny_model), weights(policy)
    assert start.keys() == end.keys()
    changed = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])}
    # all-linear adapts the projections of both layers, not the embedding (the output head is tied to it) nor norms.
    assert changed and all("_proj" in name for name in changed)
    # Rank 2: the change of a projection has at most two singular values that are not rounding.
    name = next(iter(changed))
    singular = torch.linalg.svdvals(end[name] - start[name])
    assert singular[2] < 1e-4 * singular[0]


@pytest.mark.parametrize(
    ("examples", "batch", "micro", "epochs", "steps"),
    [(16, 8, 8, 1.0, 2), (17, 8, 8, 1.0, 3), (17, 8, 2, 2.0, 6), (10, 8, 8, 0.5, 1), (1, 8, 4, 3.0, 3)],
)
def test_updates_are_counted_ahead(
    tiny_model: Path, examples: int, batch: int, micro: int, epochs: float, steps: int
) -> None:
    assert total_steps(run(tiny_model, batch_size=batch, micro_batch_size=micro, epochs=epochs), examples) == steps
