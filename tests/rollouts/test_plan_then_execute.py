"""The answer's form, and decoding in two phases on a real tiny model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollouts.engines.base import Engine, Request, Sample, SamplingParams
from rollouts.engines.hf_engine import HFEngine
from rollouts.explore_execute import ExploreExecuteEngine, compose, line_end_ids, plan_then_execute, split
from rollouts.models import load_tokenizer
from rollouts.types import Finish

EOS = 2
PARAMS = SamplingParams(max_new_tokens=24, stop_token_ids=(EOS,), temperature=1.0)
REQUESTS = [Request((10, 20, 30), (1, 2, 3, 4, 5, 6, 7, 8)), Request((40, 50), (1, 2, 3, 4, 5, 6, 7, 8))]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> HFEngine:
    return HFEngine(tiny_model, max_context=64)


LINE = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])).map(str.strip)


@given(plan=LINE, execution=LINE)
def test_split_gives_back_what_compose_joined(plan: str, execution: str) -> None:
    assert split(compose(plan, execution)) == (plan, execution)


@pytest.mark.parametrize("text", ["", "14", "Plan: 4 + 3", "Execution: 4 + 3 = 7", "Plan: a\nb\nExecution: c"])
def test_an_answer_of_another_form_has_no_parts(text: str) -> None:
    assert split(text) is None


def test_a_plan_of_two_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="one line"):
        compose("4 + 3\nthen + 7", "x")


def test_the_ends_of_a_line_are_all_tokens_with_a_break(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    # The tiny tokenizer has one token a byte, so that only the byte 10 is a line break.
    assert line_end_ids(tokenizer) == tuple(tokenizer.encode("\n", add_special_tokens=False))


def plan_ends(engine: Engine) -> tuple[int, ...]:
    """Some tokens that the tiny model does sample, so that some plans end before their limit and others do not."""
    drawn = engine.generate(REQUESTS, replace(PARAMS, max_new_tokens=8))
    return tuple(sorted({token for row in drawn for sample in row for token in sample.token_ids[2:4]} - {EOS}))[:6]


def test_the_plan_is_what_sampling_gives_and_the_rest_what_greedy_decoding_gives(engine: HFEngine) -> None:
    ends, longest = plan_ends(engine), 8
    answers = plan_then_execute(engine, REQUESTS, PARAMS, plan_end_ids=ends, max_plan_tokens=longest)
    sampled = engine.generate(REQUESTS, replace(PARAMS, max_new_tokens=longest))
    ended_by_marker = ended_by_limit = 0
    for request, row, plain in zip(REQUESTS, answers, sampled, strict=True):
        for answer, sample in zip(row, plain, strict=True):
            cut = next((i + 1 for i, t in enumerate(sample.token_ids) if t in ends), len(sample.token_ids))
            plan, rest = answer.token_ids[:cut], answer.token_ids[cut:]
            assert plan == sample.token_ids[:cut]
            assert len(answer.logprobs) == len(answer.token_ids)
            assert answer.logprobs[:cut] == pytest.approx(sample.logprobs[:cut], abs=1e-4)
            if plan[-1] == EOS:
                assert rest == ()
                continue
            ended_by_marker += plan[-1] in ends
            ended_by_limit += plan[-1] not in ends
            greedy = replace(PARAMS, max_new_tokens=PARAMS.max_new_tokens - longest, temperature=0.0)
            [[alone]] = engine.generate([Request(request.prompt_ids + plan, (99,))], greedy)
            assert rest == alone.token_ids
            assert answer.finish is alone.finish
    assert ended_by_marker and ended_by_limit


def test_the_same_seeds_give_the_same_answers_and_others_give_other_plans(engine: HFEngine) -> None:
    wrapped = ExploreExecuteEngine(engine, plan_end_ids=(), max_plan_tokens=8)
    assert wrapped.generate(REQUESTS, PARAMS) == wrapped.generate(REQUESTS, PARAMS)
    plans = {answer.token_ids[:8] for answer in wrapped.generate(REQUESTS[:1], PARAMS)[0]}
    assert len(plans) == 8


def test_two_answers_with_one_plan_share_their_execution(engine: HFEngine) -> None:
    counted = Counted(engine)
    # At temperature 0 all eight plans of a prompt are the same one.
    answers = plan_then_execute(counted, REQUESTS, replace(PARAMS, temperature=0.0), plan_end_ids=(), max_plan_tokens=8)
    assert all(len(set(row)) == 1 for row in answers)
    assert counted.sequences == [16, 2]


def test_an_answer_that_ends_in_its_plan_is_not_continued(engine: HFEngine) -> None:
    counted = Counted(engine)
    params = replace(PARAMS, stop_token_ids=tuple(range(259)))  # the whole vocabulary
    answers = plan_then_execute(counted, REQUESTS, params, plan_end_ids=(), max_plan_tokens=8)
    assert counted.sequences == [16]
    assert all(answer.finish is Finish.STOP for row in answers for answer in row)


@pytest.mark.parametrize("longest", [0, 24, 30])
def test_a_plan_that_leaves_nothing_for_the_execution_is_refused(engine: HFEngine, longest: int) -> None:
    with pytest.raises(ValueError, match="between 1 and max_new_tokens - 1 \\(23\\)"):
        plan_then_execute(engine, REQUESTS, PARAMS, plan_end_ids=(), max_plan_tokens=longest)


def test_it_is_an_engine(engine: HFEngine) -> None:
    wrapped = ExploreExecuteEngine(engine, plan_end_ids=(), max_plan_tokens=8)
    assert isinstance(wrapped, Engine)
    assert wrapped.logprobs([(10, 20, 30)]) == engine.logprobs([(10, 20, 30)])
    assert (wrapped.version(), wrapped.max_context()) == (0, 64)


class Counted(ExploreExecuteEngine):
    """Counts the sequences of every call that reaches the inner engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, plan_end_ids=(), max_plan_tokens=1)
        self.sequences: list[int] = []

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Sample]]:
        self.sequences.append(sum(len(request.seeds) for request in requests))
        return self._engine.generate(requests, params)
