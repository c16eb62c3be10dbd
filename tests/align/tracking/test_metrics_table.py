import re
from pathlib import Path

from align.tracking.metrics import METRICS, meaning, undocumented


def test_names_and_families_are_found() -> None:
    assert meaning("objective/kl") == METRICS["objective/kl"]
    assert meaning("timing_s/collect") == METRICS["timing_s/*"]
    assert meaning("timing_s/step") == METRICS["timing_s/step"]
    assert meaning("objective/nothing") is None


def test_every_documented_name_is_logged_somewhere() -> None:
    """A name in the table that no source writes is a promise that no run keeps."""
    root = Path(__file__).resolve().parents[3]
    files = [f for package in ("align", "rewards", "rollouts") for f in (root / package).rglob("*.py")]
    source = "\n".join(f.read_text() for f in files if f.name != "metrics.py")
    # Written out, or made of a prefix and a variable: f"label/{end}", TIMING + name, stem.
    made = (*re.findall(r'f"([a-z_]+/)\{', source), "timing_s/", "sft/", "sequences/", "bandit/", "theory/")
    exact = [name for name in METRICS if "*" not in name]
    assert [name for name in exact if f'"{name}"' not in source and not name.startswith(made)] == []


def test_undocumented_lists_each_stranger_once() -> None:
    assert undocumented(["z/new", "beta", "a/new", "z/new", "perf/mfu"]) == ["a/new", "z/new"]


def test_every_line_is_one_line_and_no_name_is_a_folder_of_another() -> None:
    names = list(METRICS)
    assert all(text.strip() == text and "\n" not in text and len(text) > 10 for text in METRICS.values())
    # Some stores make folders of the parts of a name; a name that is also a folder breaks them.
    assert [(a, b) for a in names for b in names if b.startswith(a + "/")] == []
