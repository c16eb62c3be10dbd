"""The policy discriminator over trajectories, its baselines, and the ranks that they are compared by."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.success.discriminator import DiscriminatorConfig, TrajectoryDiscriminator, TripleDraw
from rewards.success.errors import SuccessError
from rewards.success.ranking import evaluate, ranking_table
from rewards.success.ranks import auroc, average_ranks, spearman
from rewards.success.trajectories import TrajectoryConfig, TrajectoryReader, baseline_scores, resample
from rollouts.envs.types import STATE, Episode, Source, Task
from tests.rewards.success.toys import LEFT, RIGHT, episode

STATES = TrajectoryConfig(state_dimensions=(0,), length=8)
CONFIG = DiscriminatorConfig(STATES, hidden=16, steps=200, batch_size=32)


def rollouts(speed: float, count: int, seed: int, task: Task = RIGHT) -> list[Episode]:
    """A policy is known by its speed: the square starts anywhere and goes ten steps."""
    made = []
    for place in range(count):
        rng = np.random.default_rng([seed, place])
        way = np.clip(0.2 * rng.random() + speed * np.arange(11) + 0.01 * rng.normal(size=11), 0, 1)
        made.append(
            episode(way.tolist(), task, Source.POLICY, seed=1000 * seed + place, name=f"{task.name}{seed}.{place}")
        )
    return made


def policies(first: int, count: int) -> dict[str, list[Episode]]:
    speeds = np.random.default_rng(first).uniform(0.0, 0.1, count)
    return {f"{first}.{place}": rollouts(speed, 5, first + place) for place, speed in enumerate(speeds)}


@pytest.fixture(scope="module")
def fitted() -> TrajectoryDiscriminator:
    model = TrajectoryDiscriminator(CONFIG)
    metrics = model.fit(policies(100, 24))
    assert metrics["fit/loss"] < 0.5
    return model


def test_it_knows_policies_that_it_has_not_seen(fitted: TrajectoryDiscriminator) -> None:
    results = {r.name: r for r in evaluate(fitted, policies(500, 16), rollouts(0.1, 3, 900), triples=600)}
    assert list(results) == ["discriminator", "trajectory L2", "final L2"]
    found = results["discriminator"]
    assert found.pair_accuracy.value > 0.75
    assert found.pair_accuracy.low > 0.5  # better than chance for certain
    assert found.success_auroc is not None and found.success_auroc > 0.8
    assert found.policy_spearman is not None and found.policy_spearman > 0.6
    table = ranking_table(list(results.values()))
    assert table.count("\n") == 5
    assert "| trajectory L2 | 0." in table


def test_probabilities_are_against_the_references_of_the_task(fitted: TrajectoryDiscriminator) -> None:
    fast, slow = rollouts(0.09, 4, 700), rollouts(0.01, 4, 701)
    with pytest.raises(SuccessError, match="no references for task 'right'"):
        fitted.probabilities(fast)
    fitted.set_references(rollouts(0.09, 3, 702))
    found = fitted.probabilities([*fast, *slow])
    assert found.dtype == np.float32 and found.shape == (8,)
    assert ((found >= 0) & (found <= 1)).all()
    assert found[:4].min() > found[4:].max()
    np.testing.assert_array_equal(found[2:3], fitted.probabilities(fast[2:3]))
    with pytest.raises(SuccessError, match="'left'"):
        fitted.probabilities(rollouts(0.01, 1, 9, LEFT))


def test_its_state_is_all_of_it(fitted: TrajectoryDiscriminator) -> None:
    fitted.set_references(rollouts(0.09, 2, 702))
    other = TrajectoryDiscriminator(CONFIG)
    other.load_state_dict(fitted.state_dict())
    some = rollouts(0.05, 3, 44)
    np.testing.assert_array_equal(other.probabilities(some), fitted.probabilities(some))
    empty = TrajectoryDiscriminator(CONFIG)
    empty.load_state_dict(TrajectoryDiscriminator(CONFIG).state_dict())
    with pytest.raises(SuccessError, match="not fitted"):
        empty.scores(np.zeros((8, 1), np.float32), np.zeros((1, 8, 1), np.float32))


def test_it_reads_images_too() -> None:
    pictures = TrajectoryConfig(source="image", backbone="random", grid=2, length=4)
    model = TrajectoryDiscriminator(DiscriminatorConfig(pictures, hidden=8, steps=5, batch_size=4))
    model.fit(policies(100, 3))
    results = evaluate(model, policies(500, 3), rollouts(0.1, 2, 900), images=pictures, triples=50)
    assert [r.name for r in results] == ["discriminator", "trajectory L2", "final L2", "final image L2"]
    assert all(0 <= r.pair_accuracy.value <= 1 for r in results)


def test_triples_share_a_task_and_differ_as_they_should() -> None:
    owner = np.array([0, 0, 0, 1, 1, 2])
    task = np.array(["a", "a", "b", "a", "b", "b"])
    drawn = TripleDraw(owner, task, seed=0)(300)
    for reference, same, other in drawn.tolist():
        assert reference != same
        assert owner[reference] == owner[same] != owner[other]
        assert task[reference] == task[same] == task[other]
    assert set(drawn[:, 0].tolist()) == {0, 1}  # all others have no second rollout of the task
    with pytest.raises(SuccessError, match="two episodes"):
        TripleDraw(np.array([0, 1]), np.array(["a", "a"]), 0)
    with pytest.raises(SuccessError, match="two episodes"):
        TripleDraw(np.array([0, 0]), np.array(["a", "a"]), 0)


def test_a_task_without_a_reference_is_refused(fitted: TrajectoryDiscriminator) -> None:
    with pytest.raises(SuccessError, match="no reference for the tasks left"):
        evaluate(fitted, {"a": rollouts(0.1, 2, 1, LEFT), "b": rollouts(0.2, 2, 2, LEFT)}, rollouts(0.1, 1, 3))


def test_resampling_keeps_the_ends_and_is_linear_between() -> None:
    line = np.array([[0.0, 5.0], [1.0, 5.0], [4.0, 5.0]], np.float32)
    assert resample(line, 5).tolist() == [[0, 5], [0.5, 5], [1, 5], [2.5, 5], [4, 5]]
    assert resample(line[:1], 3).tolist() == [[0, 5]] * 3


def test_baselines_by_hand() -> None:
    reference = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    candidates = np.array([[[0, 0], [3, 4]], [[0, 1], [0, 0]]], np.float32)
    assert baseline_scores("trajectory L2", reference, candidates).tolist() == [0, -3]
    assert baseline_scores("final L2", reference, candidates).tolist() == [0, -5]
    with pytest.raises(ValueError, match="unknown"):
        baseline_scores("L3", reference, candidates)


def test_features_are_standardised_by_training_and_constant_ones_vanish() -> None:
    one = rollouts(0.05, 4, 5)
    flat = [
        replace(e, observations={**e.observations, STATE: np.c_[e.observations[STATE][:, :1], np.ones(11)]})
        for e in one
    ]
    reader = TrajectoryReader(TrajectoryConfig(length=6))
    rows = reader.standardise(flat)
    np.testing.assert_allclose(rows[..., 0].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(rows[..., 0].std(), 1, atol=1e-4)
    assert not rows[..., 1].any()
    np.testing.assert_allclose(reader.read(flat), rows, atol=1e-5)
    with pytest.raises(SuccessError, match="has no 'image'"):
        TrajectoryReader(TrajectoryConfig(source="image", backbone="random")).read([replace(one[0], observations={})])


def test_ranks_by_hand() -> None:
    assert average_ranks(np.array([10.0, 20.0, 10.0, 5.0])).tolist() == [2.5, 4, 2.5, 1]
    assert auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert auroc([1.0, 1.0], [True, False]) == 0.5
    assert auroc([1.0], [True]) is None
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 1, 2]) == pytest.approx(-0.5)
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [1]) is None


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    ones, zeros = [s for s, y in rows if y], [s for s, y in rows if not y]
    found = auroc([s for s, _ in rows], [y for _, y in rows])
    if not ones or not zeros:
        assert found is None
    else:
        pairs = [(a > b) + (a == b) / 2 for a in ones for b in zeros]
        assert found == pytest.approx(sum(pairs) / len(pairs))
