"""The scoring benchmark: what every form is asked, what the table says, and the command on the tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.bench.score import (
    FORMS,
    Case,
    Shape,
    loop_form,
    main,
    prepare,
    random_groups,
    render,
    summarise,
    transformers_form,
)
from align.errors import UserError

SHAPE = Shape(groups=2, candidates=3, prompt=6, reference=9, output=4)


@pytest.fixture(scope="module")
def case(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepare(tiny_model, tmp_path_factory.mktemp("bench") / "model", "float32", SHAPE.tokens)


def test_candidates_share_all_but_their_output(case: Case) -> None:
    sequences = random_groups(SHAPE, case)
    assert SHAPE.tokens == 2 * 6 + 9 + 4 + 2
    assert [len(sequence) for sequence in sequences] == [SHAPE.tokens] * 6
    assert sequences == random_groups(SHAPE, case)
    separator, score = case.control
    for group in (sequences[:3], sequences[3:]):
        assert len({sequence[: -SHAPE.output - 1] for sequence in group}) == 1
        assert len({sequence[-SHAPE.output - 1 :] for sequence in group}) == 3
    for sequence in sequences:
        assert sequence[:6] == sequence[16:22] and sequence[15] == separator and sequence[-1] == score


def test_a_backbone_gets_a_head_and_a_polar_model_keeps_its_own(
    case: Case, tiny_classifier: Path, tmp_path: Path
) -> None:
    config = json.loads((case.folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert case.control == (259, 260)
    assert prepare(tiny_classifier, tmp_path / "unused", "float32", 64).folder == tiny_classifier
    assert not (tmp_path / "unused").exists()


def test_our_form_and_the_loop_give_the_same_scores(case: Case) -> None:
    sequences = random_groups(SHAPE, case)
    sequences = [*sequences, sequences[0][5:], sequences[1][7:], sequences[2][1:]]  # so that the loop pads
    loop, none = loop_form(case)(sequences)
    assert none == 0
    for reuse, reused in ((False, 0), (True, 2 * 2 * (2 * 6 + 9 + 1))):
        scores, found = transformers_form(case, reuse)(sequences)
        assert scores == pytest.approx(loop, abs=1e-4)
        assert found == reused


def test_rates_and_differences_are_by_hand() -> None:
    answers: dict[str, list[dict[str, Any]]] = {
        "ours": [{"seconds": s, "scores": [0, 1, 2, 3, 4, 5], "reused": 81} for s in (2.0, 1.0, 3.0)],
        "loop": [{"seconds": 6.0, "scores": [0.1, 1, 2, 3, 4, 5], "reused": 0}] * 3,
    }
    shape = summarise(SHAPE, answers)
    assert shape["forms"]["ours"] == {"median_per_s": 3.0, "min_per_s": 2.0, "max_per_s": 6.0, "reused": 0.5}
    assert shape["max_difference"] == pytest.approx(0.1)
    report = {"shapes": [shape], "model": "m", "dtype": "bfloat16", "repeats": 3, "seed": 0, "commit": "abc"}
    text = render(report | {"threads": 2, "cpus": 2, "machine": "cpu"})
    assert "  ours                                 3.00    2.00    6.00      50%    3.00" in text
    assert "  loop                                 1.00    1.00    1.00       0%    1.00" in text
    assert "scores differ by at most 0.1 between forms" in text


def test_a_form_that_is_wrong_stops_the_measurement() -> None:
    """Scores of 0 to 5 spread by sqrt(35 / 12) = 1.71, of which 0.35 is 0.60; two neighbours exchanged are
    sqrt(2 / 6) = 0.58 apart, and one score wrong by 2 is sqrt(4 / 6) = 0.82 apart."""
    right = {"seconds": 1.0, "scores": [0.0, 1, 2, 3, 4, 5], "reused": 0}
    close = right | {"scores": [1.0, 0, 2, 3, 4, 5]}
    assert summarise(SHAPE, {"a": [close], "b": [right]})["max_difference"] == 1
    with pytest.raises(UserError, match=r"the form 'a' gives other scores: 0.816 apart .* spread by 1.71"):
        summarise(SHAPE, {"a": [right | {"scores": [2.0, 1, 2, 3, 4, 5]}], "b": [right]})
    with pytest.raises(UserError, match="gives other scores: nan apart"):
        summarise(SHAPE, {"a": [right | {"scores": [float("nan"), 1, 2, 3, 4, 5]}], "b": [right]})


def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forms: list[str]) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    assert main(str(folder), repeats=2, shapes=[SHAPE], dtype="float32", forms=forms) == 0
    report = json.loads((tmp_path / "runs" / "bench" / "score.json").read_text())
    [shape] = report["shapes"]
    assert list(shape["forms"]) == forms
    for found in shape["forms"].values():
        assert 0 < found["min_per_s"] <= found["median_per_s"] <= found["max_per_s"]
    assert shape["max_difference"] < 1e-3
    return dict(shape)


@pytest.mark.slow
def test_the_command_measures_the_transformers_forms(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = run(tiny_model, tmp_path, monkeypatch, [form for form in FORMS if "vLLM" not in form])
    assert shape["forms"]["transformers, prefix reuse"]["reused"] == pytest.approx(2 * 2 * 22 / (6 * SHAPE.tokens))
    assert "2 group(s) of 3 candidates; tokens: prompt 6, reference 9, candidate 4" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_measures_all_forms(tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_classifier, tmp_path, monkeypatch, list(FORMS))


def test_mistakes_are_the_users(tiny_classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats must be 1 or more"):
        main(repeats=0)
    with pytest.raises(UserError, match="no such folder"):
        main(str(tmp_path / "nothing"))
    too_long = Shape(groups=1, candidates=2, prompt=300, reference=1, output=1)
    with pytest.raises(UserError, match="transformers: max_context 604 exceeds the 512 positions"):
        main(str(tiny_classifier), repeats=1, shapes=[too_long], forms=["transformers"])
