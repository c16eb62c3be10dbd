"""How sure a measured share is. Intervals are two-sided 95%."""

import math

Z95 = 1.959963984540054


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share: unlike the normal one it stays inside 0..1 and has width at 0 and 1.

    ``successes`` may be fractional, where problems are scored by the mean of several samples; the interval is then
    too wide rather than too narrow, since such means vary less than single answers.
    """
    if trials <= 0:
        raise ValueError("an accuracy needs at least one problem")
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} problems cannot be right")
    share, z2 = successes / trials, Z95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
