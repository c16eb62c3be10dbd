"""Numbers and other people's text, made fit for one terminal cell."""

import math
import re
import unicodedata
from collections.abc import Sequence

from align.protocols import Metrics

BARS = "▁▂▃▄▅▆▇█"
# CSI and OSC sequences as a whole, or their harmless-looking rest would stay behind: ``[31m``.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
NONE = "-"


def clean(text: str) -> str:
    """One line without anything that could steer a terminal: line breaks become ``↵``, other controls vanish.

    Escape characters, bidirectional overrides and invisible characters go; what is no character becomes ``�``.
    """
    kept = []
    for character in _ESCAPES.sub("", text).replace("\r\n", "\n").strip():
        category = unicodedata.category(character)
        if character == "\n":
            kept.append(" ↵ ")
        elif category in ("Zs", "Zl", "Zp") or character == "\t":
            kept.append(" ")
        elif category in ("Cs", "Co", "Cn"):
            kept.append("�")
        elif category not in ("Cc", "Cf"):
            kept.append(character)
    return " ".join("".join(kept).split())


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters: the beginning, and the end, where answers stand."""
    if len(text) <= limit:
        return text
    tail = max(0, limit // 3 - 1)
    return f"{text[: limit - tail - 3].rstrip()} … {text[len(text) - tail :].lstrip()}"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, no exponent where it can be helped; a dash for no value."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{max(0, digits - 1)}e}"
    text = f"{value:.{max(0, digits - 1 - magnitude)}f}"
    return text if abs(value) < 1000 or "." in text else str(round(value))


def count(value: float | None) -> str:
    """A count: whole where it is whole."""
    return str(int(value)) if value is not None and math.isfinite(value) and value == int(value) else number(value)


def duration(seconds: float | None) -> str:
    """``41 s`` below a minute, ``4:31`` below an hour, then ``1:02:03``."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = round(max(0.0, seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def spark(values: Sequence[float], width: int = 16) -> str:
    """The last ``width`` values as a line of bars, from their lowest to their highest."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return BARS[0] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def phases(metrics: Metrics) -> dict[str, float]:
    """Seconds by phase, ``other`` included, the longest first."""
    prefix = "timing_s/"
    found = {
        name.removeprefix(prefix): seconds
        for name, seconds in metrics.items()
        if name.startswith(prefix) and name != "timing_s/step"
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bottleneck(metrics: Metrics) -> str:
    """The phase that takes most of the step, with its share: ``learn 58%``. Empty where nothing was timed."""
    shares = phases(metrics)
    total = sum(shares.values())
    if total <= 0:
        return ""
    name, seconds = next(iter(shares.items()))
    return f"{name} {seconds / total:.0%}"
