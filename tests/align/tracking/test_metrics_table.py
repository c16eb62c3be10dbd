from align.tracking.metrics import METRICS, meaning, undocumented


def test_names_and_families_are_found() -> None:
    assert meaning("objective/kl") == METRICS["objective/kl"]
    assert meaning("timing_s/collect") == METRICS["timing_s/*"]
    assert meaning("timing_s/step") == METRICS["timing_s/step"]
    assert meaning("objective/nothing") is None


def test_undocumented_lists_each_stranger_once() -> None:
    assert undocumented(["z/new", "beta", "a/new", "z/new", "perf/mfu"]) == ["a/new", "z/new"]


def test_every_line_is_one_line_and_no_name_is_a_folder_of_another() -> None:
    names = list(METRICS)
    assert all(text.strip() == text and "\n" not in text and len(text) > 10 for text in METRICS.values())
    # Some stores make folders of the parts of a name; a name that is also a folder breaks them.
    assert [(a, b) for a in names for b in names if b.startswith(a + "/")] == []
