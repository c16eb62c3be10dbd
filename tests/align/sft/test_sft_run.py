"""A warm start from beginning to end on the tiny model: files, numbers, and going on after a kill."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.errors import UserError
from align.protocols import Metrics
from align.sft.config import Data, Evaluation, ExploreExecuteData, JsonlData, SFTConfig, SFTRun, WorkedData
from align.sft.examine import adherence
from align.sft.run import SFTOutcome, run
from align.tracking.jsonl import JsonlSink, read_metrics
from align.tracking.metrics import undocumented
from align.tracking.samples import SampleRow
from align.tracking.tracker import RunTracker
from rollouts.prompts import gym_prompts, question_of
from rollouts.types import Completion, Finish, Message, Origin, Prompt, Rollout

ONE = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}
HELDOUT = gym_prompts("chain_sum", size=6, seed=2, config=ONE, distinct=True)
TRAIN = gym_prompts(
    "chain_sum", size=12, seed=1, config=ONE, distinct=True, exclude=frozenset(question_of(p) for p in HELDOUT)
)


def config(model: Path, data: Data, **evaluation: Any) -> SFTRun:
    return SFTRun(
        str(model),
        data,
        dtype="float32",
        sft=SFTConfig(epochs=2, lr=3e-3, batch_size=4, micro_batch_size=4, log_every=1, checkpoint_every=2),
        evaluation=Evaluation(max_new_tokens=12, **evaluation),
    )


class Kill:
    """A sink that ends the process, so to speak, in the middle of writing a step."""

    name = "kill"

    def __init__(self, at: int) -> None:
        self._at = at

    def write(self, step: int, metrics: Metrics) -> None:
        if step == self._at:
            raise KeyboardInterrupt

    def open(self) -> None: ...

    def phase(self, name: str) -> None: ...

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None: ...

    def close(self, failed: bool = False) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def tracker(folder: Path, kill_at: int = -1) -> Callable[[int], RunTracker]:
    return lambda steps: RunTracker([JsonlSink(folder), Kill(kill_at)])


def go(settings: SFTRun, folder: Path, kill_at: int = -1, train: Sequence[Prompt] = TRAIN) -> SFTOutcome:
    return run(settings, folder, train=train, heldout=HELDOUT, make_tracker=tracker(folder, kill_at))


def numbers(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The metrics of a run without what depends on the clock."""
    return [
        (step, {k: v for k, v in metrics.items() if not k.startswith(("timing_s/", "perf/"))})
        for step, metrics in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tiny_model, WorkedData("steps"))
    whole = go(settings, tmp_path / "whole")
    killed = tmp_path / "killed"
    # 12 examples in batches of 4, twice: 6 updates. The kill at 5 falls between the checkpoints of 4 and 6.
    with pytest.raises(KeyboardInterrupt):
        go(settings, killed, kill_at=5)
    assert not (killed / "policy").exists()
    resumed = go(settings, killed)
    assert dataclasses.replace(resumed, policy=whole.policy) == whole
    assert whole.steps == 6 and whole.examples == 12
    assert numbers(killed) == numbers(tmp_path / "whole")
    assert [step for step, _ in numbers(killed)] == list(range(7))
    one, other = load_file(whole.policy / "model.safetensors"), load_file(resumed.policy / "model.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    # The run once more: nothing left to train, and the same end.
    assert go(settings, killed) == resumed
    assert numbers(killed) == numbers(tmp_path / "whole")


def test_a_run_killed_at_its_last_evaluation_does_not_train_again(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tiny_model, WorkedData("reference"))
    with pytest.raises(KeyboardInterrupt):
        go(settings, tmp_path, kill_at=6)
    saved = (tmp_path / "policy" / "model.safetensors").stat().st_mtime_ns
    outcome = go(settings, tmp_path)
    assert (tmp_path / "policy" / "model.safetensors").stat().st_mtime_ns == saved
    [*_, (step, last)] = numbers(tmp_path)
    assert step == outcome.steps == 6
    # The numbers of the last update stand beside the evaluation, though another process made them.
    assert {"loss/total", "eval/accuracy"} <= last.keys()


def test_an_explore_execute_run_leaves_data_ledger_and_both_measurements(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tiny_model, ExploreExecuteData(plans_per_prompt=2), plan_tokens=6)
    outcome = go(settings, tmp_path, train=[*TRAIN, *HELDOUT])
    records = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert len(records) == outcome.examples > len(TRAIN)
    # Held-out questions are left out, though they stood among the prompts.
    assert {r["prompt"][-1]["content"] for r in records} == {question_of(p) for p in TRAIN}
    assert all(r["completion"][0]["content"].startswith("Plan: ") for r in records)
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert sum(entry["verdict"] == "kept" for entry in entries) == len(records)
    logged = numbers(tmp_path)
    assert undocumented(name for _, metrics in logged for name in metrics) == []
    assert logged[0][1]["data/examples"] == len(records)
    for metrics in (logged[0][1], logged[-1][1]):
        assert {"eval/accuracy", "eval/two_phase_accuracy", "eval/plan_adherence"} <= metrics.keys()
    assert outcome.two_phase_before is not None and len(outcome.two_phase_before) == len(outcome.before) == 6
    assert (tmp_path / "samples.jsonl").exists()


def test_a_file_is_trained_on_without_its_held_out_questions(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": question_of(p), "completion": " " + str(p.answer)} for p in (*TRAIN, *HELDOUT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = go(config(tiny_model, JsonlData(str(path))), tmp_path / "run", train=())
    assert outcome.examples == len(TRAIN)


def test_a_folder_is_not_continued_with_other_settings(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tiny_model, WorkedData())
    with pytest.raises(KeyboardInterrupt):
        go(settings, tmp_path, kill_at=3)
    with pytest.raises(UserError, match=r"belongs to another run: seed was different.*run\.dir"):
        go(dataclasses.replace(settings, seed=1), tmp_path)


def test_nothing_to_train_on_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        go(config(tiny_model, WorkedData()), tmp_path, train=HELDOUT)


def test_a_policy_that_cannot_plan_gives_no_data_and_says_where_to_read_why(tiny_model: Path, tmp_path: Path) -> None:
    data = ExploreExecuteData(
        source="policy", plans_per_prompt=1, attempts=1, max_plan_tokens=8, max_execution_tokens=8
    )
    with pytest.raises(UserError, match=r"none of 2 drafts adheres.*ledger\.jsonl.*data\.source=scripted"):
        go(config(tiny_model, data), tmp_path, train=TRAIN[:2])
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_adherence_is_the_share_of_answers_that_carry_out_their_plan() -> None:
    def answer(text: str) -> Completion:
        return Completion((), (), text, Finish.STOP, Origin.POLICY, 0)

    prompt = Prompt("x", (Message("user", "4 + 3 ="),))
    good = "Plan: 4 + 3\nExecution: 4 + 3 = 7. Answer: 7"
    other = "Plan: 3 + 4\nExecution: 4 + 3 = 7. Answer: 7"
    rollout = Rollout(prompt, (), (answer(good), answer(other), answer("7"), answer(good)))
    assert adherence([rollout]) == 2 / 4
