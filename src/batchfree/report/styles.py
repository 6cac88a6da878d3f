"""How each norm and each size looks, in every figure: colours for both themes, dashes, markers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Style:
    """The look of a line.

    Attributes:
        key: names the style in CSS; letters, digits and dashes only.
        light, dark: the colour on a light and on a dark ground, `#rrggbb`.
        dash: `solid`, `dash`, `dot`, `dashdot` or `longdash`.
        marker: `circle`, `square`, `diamond`, `triangle-up`, `triangle-down`, or None for
            a bare line.
    """

    key: str
    light: str
    dark: str
    dash: str = "solid"
    marker: str | None = None


# Okabe and Ito's colours, darkened or lightened where the ground asks for it; dash and marker
# tell the norms apart where colour does not.
_NORMS = {
    "bn": ("BN", "BatchNorm", Style("bn", "#c9530a", "#ff9b5e", "solid", "circle")),
    "gn": ("GN", "GroupNorm", Style("gn", "#0068a8", "#5cb8f5", "dash", "square")),
    "gn+ws": (
        "GN+WS",
        "GroupNorm + WS",
        Style("gn-ws", "#4a4f5e", "#c3c8d4", "longdash", "diamond"),
    ),
    "ln": ("LN", "LayerNorm", Style("ln", "#00805c", "#3ccfa0", "dashdot", "triangle-up")),
    "in": ("IN", "InstanceNorm", Style("in", "#a8478a", "#e79bcb", "dot", "triangle-down")),
}
_OTHERS = (("#6b5d00", "#d9c855"), ("#7a3b3b", "#e0a3a3"), ("#3d5a3d", "#a9cfa9"))

# From the largest size to the smallest: dark to bright on paper, so that the order is seen.
_RAMP_LIGHT = ("#1b2a6b", "#55399b", "#9a3d97", "#cf4f6d", "#e5842e")
_RAMP_DARK = ("#8fb7ff", "#b79bff", "#f08bd0", "#ff9a86", "#ffd166")


def norm_order(norms: set[str]) -> list[str]:
    """The norms as figures and tables list them: the known ones first, the rest by name."""
    return [norm for norm in _NORMS if norm in norms] + sorted(norms - set(_NORMS))


def norm_label(norm: str) -> str:
    """A norm's short name, `BN`."""
    return _NORMS[norm][0] if norm in _NORMS else norm


def norm_name(norm: str) -> str:
    """A norm's long name, `BatchNorm`."""
    return _NORMS[norm][1] if norm in _NORMS else norm


def norm_style(norm: str, norms: set[str]) -> Style:
    """A norm's look; those without one of their own share what is left, by rank in `norms`."""
    if norm in _NORMS:
        return _NORMS[norm][2]
    rank = sorted(norms - set(_NORMS)).index(norm)
    light, dark = _OTHERS[rank % len(_OTHERS)]
    return Style(f"other-{rank}", light, dark, "dot", "circle")


def every_size_style() -> Style:
    """The look of a run that stands for every size."""
    return Style("every-size", "#6b7280", "#ccd2de")


def size_style(rank: int, count: int) -> Style:
    """The look of the `rank`-th of `count` sizes, from a ramp of colours."""
    where = rank / max(count - 1, 1)
    light, dark = _along(_RAMP_LIGHT, where), _along(_RAMP_DARK, where)
    return Style(f"size-{rank}-of-{count}", light, dark)


def translucent(color: str, alpha: float) -> str:
    """`#rrggbb` as an `rgba()` of CSS."""
    red, green, blue = _channels(color)
    return f"rgba({red},{green},{blue},{alpha:g})"


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _along(ramp: tuple[str, ...], where: float) -> str:
    pieces = list(pairwise(ramp))
    index = min(int(where * len(pieces)), len(pieces) - 1)
    part = where * len(pieces) - index
    start, end = map(_channels, pieces[index])
    mixed = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
