"""What of an annotation can be put right without guessing. Needs `batchfree[detect]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchfree.data import masks as mask_tools

_LARGEST = 1e10  # pixels; COCO's evaluation takes no object for larger


def whole(value: Any) -> int | None:
    """A whole number, also one that a program wrote as 7.0; None for anything else.

    Example:
        >>> whole(7), whole(7.0), whole(7.5), whole(True)
        (7, 7, None, None)
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def mended_shape(segmentation: Any) -> tuple[Any, int]:
    """A segmentation with whole numbers written as such, and how many polygons it is rid of.

    Polygons of fewer than three points go where others stay; pycocotools takes two points for a
    box where they come first, and draws nothing of them elsewhere.

    Returns:
        The segmentation itself where there is nothing to mend; and the number of polygons left out.

    Example:
        >>> mended_shape({"size": [2.0, 3.0], "counts": [6.0]})
        ({'size': [2, 3], 'counts': [6]}, 0)
        >>> mended_shape([[0, 0, 4, 0, 4, 4], [1, 1, 2, 2], []])
        ([[0, 0, 4, 0, 4, 4]], 2)
    """
    if isinstance(segmentation, Mapping):
        lists = {k: v for k in ("size", "counts") if isinstance(v := segmentation.get(k), list)}
        whole_ones = {
            k: [v if (n := whole(v)) is None else n for v in values]
            for k, values in lists.items()
            if any(type(v) is float for v in values)
        }
        return ({**segmentation, **whole_ones} if whole_ones else segmentation), 0
    if isinstance(segmentation, list):
        short = [isinstance(p, list) and len(p) < 6 for p in segmentation]
        if any(short) and not all(short):
            kept = [p for p, is_short in zip(segmentation, short, strict=True) if not is_short]
            return kept, sum(short)
    return segmentation, 0


def problem(segmentation: Any, height: int, width: int) -> str | None:
    """As `masks.problem`; what the library chokes on is a problem too.

    Example:
        >>> problem({"size": [1, True], "counts": "1"}, 1, 1)
        'a run-length encoding whose size is not two whole numbers'
    """
    if isinstance(segmentation, Mapping):
        size = segmentation.get("size")
        if isinstance(size, list) and not all(type(n) is int for n in size):
            return "a run-length encoding whose size is not two whole numbers"
    try:
        return mask_tools.problem(segmentation, height, width) or _undrawable(
            segmentation, height, width
        )
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as e:
        return f"a segmentation that cannot be drawn ({_line(e)})"


def _undrawable(segmentation: Any, height: int, width: int) -> str | None:
    """What becomes of a list of counts in the library; polygons are settled by their numbers."""
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], list):
        mask_tools.run_lengths(segmentation, height, width)
    return None


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_area(value: Any) -> bool:
    """Whether a value is a number of pixels that an object can cover.

    Example:
        >>> [is_area(v) for v in (1600, 0.5, 0, -1, float("nan"), float("inf"), None, "1600")]
        [True, True, False, False, False, False, False, False]
    """
    return type(value) in (int, float) and 0 < value <= _LARGEST


def area(annotation: Mapping[str, Any], height: int, width: int) -> float:
    """An annotation's area; its mask's where it gives none that can be, or else its box's.

    Args:
        annotation: in COCO's format.
        height: of its image, pixels.
        width: of its image, pixels.

    Example:
        >>> area({"area": None, "bbox": [0, 0, 4, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}, 8, 8)
        1
        >>> area({"bbox": [0, 0, 4, 2]}, 8, 8)
        8
    """
    given: Any = annotation.get("area")
    if is_area(given):
        return float(given) if isinstance(given, float) else int(given)
    shape, _ = mended_shape(annotation.get("segmentation"))
    if shape and problem(shape, height, width) is None:
        return mask_tools.area(shape, height, width)
    across, down = (annotation.get("bbox") or (0, 0, 0, 0))[2:]
    covered: float = max(across, 0) * max(down, 0)
    return covered
