import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import UserError
from align.tracking.curves import plot, plot_run, series, smooth
from align.tracking.jsonl import JsonlSink

STEP = {
    "reward/mean": 0.4, "objective/kl": 1.2, "loss/total": 0.6, "loss/preference": 0.5, "rewards/chosen": 0.2,
    "rewards/rejected": -0.2, "timing_s/learn": 6.0, "timing_s/other": 1.0, "timing_s/step": 7.0,
}  # fmt: skip
EVAL = {"eval/accuracy": 0.3, "eval/accuracy_low": 0.2, "eval/accuracy_high": 0.4}


def write(folder: Path, rows: list[dict[str, float]]) -> None:
    sink = JsonlSink(folder)
    for step, row in enumerate(rows):
        sink.write(step, row)
    sink.close()


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels of the figure that ``plot`` saves."""
    from matplotlib.figure import Figure

    figures = []
    real = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        real(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot(folder / "metrics.jsonl", "a title")
    return list(figures[0].axes)


def test_the_picture_holds_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [EVAL, STEP, STEP | EVAL | {"eval/accuracy": 0.5, "eval/accuracy_high": 0.6}])
    accuracy, reward, kl, loss, implicit, timing = drawn(tmp_path, monkeypatch)
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[0.3, 0.5], [0.3, 0.3]]
    assert list(accuracy.lines[0].get_xdata()) == [0, 2]
    assert [text.get_text() for text in accuracy.texts] == ["0.300", "0.500"]
    assert list(reward.lines[0].get_ydata()) == [0.4, 0.4]
    assert list(kl.lines[0].get_ydata()) == [1.2, 1.2]
    assert [line.get_label() for line in loss.lines] == ["total", "preference"]
    assert [line.get_label() for line in implicit.lines] == ["chosen", "rejected"]
    tops = {round(bar.get_y() + bar.get_height(), 6) for bar in timing.patches}
    assert tops == {6.0, 7.0}
    picture = (tmp_path / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


@pytest.mark.parametrize(
    "rows",
    [[{}], [EVAL], [STEP] * 40, [{"loss/total": float("nan"), "eval/accuracy": float("inf")}]],
    ids=["nothing measured", "step zero only", "long", "diverged"],
)
def test_any_history_can_be_drawn(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    write(tmp_path, rows)
    assert plot_run(tmp_path).stat().st_size > 10_000


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished step to draw yet"):
        plot_run(tmp_path)


def test_what_is_not_finite_is_left_out() -> None:
    history = [(0, {"a": 1.0}), (1, {"a": float("nan")}), (2, {}), (3, json.loads('{"a": null}')), (4, {"a": 2.0})]
    assert series(history, "a") == ([0, 4], [1.0, 2.0])


def test_smoothing_by_hand() -> None:
    assert smooth([0.0, 3.0, 6.0, 3.0, 8.0]) == [0.0, 3.0, 4.0, 17 / 3, 8.0]
    assert smooth([]) == []
