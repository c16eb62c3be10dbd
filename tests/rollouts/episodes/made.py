"""Episodes made up for tests, and whether two are the same."""

from dataclasses import fields
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rollouts.envs.types import Episode, Source, Task


def bits(value: Any) -> Any:
    """Equal exactly where two values are the same bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return type(value), repr(value)


def same(first: Episode, second: Episode) -> bool:
    for field in fields(Episode):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name == "observations":
            a, b = dict(sorted(a.items())), dict(sorted(b.items()))
        if bits(a) != bits(b):
            return False
    return True


def episode(
    id: str,
    steps: int = 3,
    *,
    task: str = "open",
    source: Source = Source.DEMONSTRATION,
    pixels: int = 0,
    seed: int = 0,
) -> Episode:
    rng = np.random.default_rng(seed)
    observations: dict[str, Any] = {"state": rng.normal(size=(steps + 1, 2)).astype(np.float32)}
    if pixels:
        observations["image"] = rng.integers(0, 256, (steps + 1, pixels, pixels, 3), np.uint8)
    success = np.arange(steps) == steps - 1
    return Episode(
        id,
        Task(task, f"{task} it"),
        observations,
        rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        np.where(success, 0, -1).astype(np.float32),
        success,
        np.full(steps, np.nan, np.float32),
        terminated=True,
        truncated=False,
        source=source,
        metadata={"seed": seed},
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OTHER_TYPES = ["int64", "uint64", "float64", "float16", "bool", "int8", "uint8"]


def floats(*shape: int) -> st.SearchStrategy[Any]:
    """Drawn as bits, since hypothesis knows but one NaN."""
    return hnp.arrays(np.uint32, shape).map(lambda bits: bits.view(np.float32))


@st.composite
def some_episodes(draw: st.DrawFn, tame: bool = False) -> list[Episode]:
    """Some episodes of one layout, as odd as they may be; NaN in every bit pattern.

    ``tame``: such as other formats have a place for. Everything has a size, and texts have no NUL.
    """
    least, text = int(tame), TEXT.map(lambda t: t.replace("\0", "")) if tame else TEXT
    action, state = draw(st.integers(least, 3)), draw(st.integers(least, 4))
    pixels = draw(st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)))
    other = draw(st.none() | st.tuples(st.sampled_from(OTHER_TYPES), hnp.array_shapes(min_dims=0, max_dims=2)))
    if tame:
        other = None
    episodes = []
    for number in range(draw(st.integers(1, 5))):
        steps = draw(st.integers(least, 4))
        observations = {"state": draw(floats(steps + 1, state))}
        if pixels is not None:
            observations["image"] = draw(hnp.arrays(np.uint8, (steps + 1, *pixels, 3)))
        if other is not None:
            observations["other"] = draw(hnp.arrays(other[0], (steps + 1, *other[1])))
        episodes.append(
            Episode(
                f"{number}{draw(text)}",
                Task(draw(text), draw(text)),
                observations,
                draw(floats(steps, action)),
                draw(floats(steps)),
                draw(hnp.arrays(np.bool_, steps)),
                draw(floats(steps)),
                draw(st.booleans()),
                draw(st.booleans()),
                draw(st.sampled_from(Source)),
                draw(st.integers(-(2**63), 2**63 - 1)),
                draw(st.dictionaries(TEXT, PLAIN, max_size=3)),
            )
        )
    return episodes
