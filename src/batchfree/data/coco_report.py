"""What a check of a COCO annotation file found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Effect = Literal["file", "image", "annotation", "doubtful", "cleaned"]

EXAMPLES = 5

KINDS: dict[str, tuple[Effect, str]] = {
    "bad_json": ("file", "the file is no COCO annotation file"),
    "bad_category": ("annotation", "categories without a whole-numbered id and a name"),
    "duplicate_category": ("annotation", "category ids given more than once"),
    "duplicate_name": ("doubtful", "names that several categories share"),
    "bad_image": ("image", "images whose id, file name, height or width is missing or wrong"),
    "duplicate_image": ("image", "image ids given more than once"),
    "unsafe_path": ("image", "file names that lead out of the image folder"),
    "missing_image": ("image", "images that are not in the image folder"),
    "corrupt_image": ("image", "image files that cannot be read"),
    "image_size": ("image", "image files of another size than the annotation file says"),
    "orientation": ("doubtful", "images whose size does not tell whether EXIF turns them"),
    "bad_annotation": (
        "annotation",
        "annotations whose id, image, category or iscrowd is missing or wrong",
    ),
    "duplicate_annotation": ("annotation", "annotation ids given more than once"),
    "unknown_image": ("annotation", "annotations of images that are not listed"),
    "unknown_category": ("annotation", "annotations of categories that are not listed"),
    "bad_box": ("annotation", "boxes that are not four finite numbers"),
    "no_segmentation": ("annotation", "annotations without a segmentation"),
    "bad_segmentation": ("annotation", "segmentations that cannot be drawn"),
    "box_off_mask": ("doubtful", "boxes that do not fit their mask"),
    "box_corners": ("doubtful", "boxes outside that look like x1, y1, x2, y2"),
    "short_polygon": ("cleaned", "polygons of fewer than three points, beside others"),
    "empty_mask": ("cleaned", "masks without a pixel in their image"),
    "zero_area": ("cleaned", "boxes with a side of zero or less"),
    "bad_area": ("cleaned", "areas that are no number of pixels above zero"),
    "box_outside": ("cleaned", "boxes that reach outside their image"),
}
"""Every kind of finding: what it costs where bad entries are skipped, and what it is.

`file`: nothing of the file can be used. `image`, `annotation`: that one is left out. `doubtful`: it
is used as it stands, with a warning, since nothing shows which of two readings is meant. `cleaned`:
the data set always puts it right, by clipping a box or leaving out an empty one, by leaving out a
polygon that has no inside, or by the mask's area in place of what is none, so that it is no error
for training.
"""


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one file.

    Attributes:
        kind: a key of `KINDS`.
        count: how often.
        examples: the first five, each naming the entry.
    """

    kind: str
    count: int
    examples: tuple[str, ...]

    @property
    def effect(self) -> Effect:
        """What it costs: a value of `Effect`."""
        return KINDS[self.kind][0]

    @property
    def description(self) -> str:
        """The kind in words."""
        return KINDS[self.kind][1]


def in_line(findings: Iterable[Finding]) -> str:
    """Findings in one line, with an example each."""
    return "; ".join(f"{f.count} {f.description} ({f.examples[0]})" for f in findings)


@dataclass(frozen=True)
class FileReport:
    """The check of one annotation file.

    Attributes:
        annotation_file: the JSON file.
        image_folder: where its images are.
        images: entries in it.
        annotations: entries in it.
        categories: entries in it.
        crowds: annotations of crowds.
        empty: images without an annotation.
        findings: what is wrong, in the order of `KINDS`; empty where nothing is.
    """

    annotation_file: Path
    image_folder: Path
    images: int
    annotations: int
    categories: int
    crowds: int
    empty: int
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of what cannot be used."""
        return tuple(f for f in self.findings if f.effect not in ("doubtful", "cleaned"))

    @property
    def doubts(self) -> tuple[Finding, ...]:
        """The findings of what is used as it stands, though it may be wrong."""
        return tuple(f for f in self.findings if f.effect == "doubtful")

    def summary(self) -> str:
        """The errors in one line, with an example each."""
        return in_line(self.errors)


@dataclass(frozen=True)
class CocoReport:
    """The check of a data set.

    Attributes:
        files: a report for each annotation file.
    """

    files: tuple[FileReport, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found in any file."""
        return all(f.clean for f in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The report as what JSON can hold."""
        return {
            "clean": self.clean,
            "files": [
                {
                    "annotation_file": str(file.annotation_file),
                    "image_folder": str(file.image_folder),
                    **{
                        name: getattr(file, name)
                        for name in ("images", "annotations", "categories", "crowds", "empty")
                    },
                    "findings": [
                        {
                            "kind": f.kind,
                            "description": f.description,
                            "effect": f.effect,
                            "count": f.count,
                            "examples": list(f.examples),
                        }
                        for f in file.findings
                    ],
                }
                for file in self.files
            ],
        }

    def to_text(self) -> str:
        """The report as lines of text, a table of findings for each file."""
        lines: list[str] = []
        for file in self.files:
            lines += [
                f"{file.annotation_file}: {file.images} images ({file.empty} without an "
                f"annotation), {file.annotations} annotations ({file.crowds} of crowds), "
                f"{file.categories} categories",
                f"images in {file.image_folder}",
            ]
            if file.clean:
                lines.append("  nothing is wrong")
            for f in file.findings:
                lines.append(f"  {f.count:>8}  {f.description}  [{f.kind}]")
                lines += [f"            {example}" for example in f.examples]
                if f.count > len(f.examples):
                    lines.append(f"            and {f.count - len(f.examples)} more")
            lines.append("")
        return "\n".join(lines).rstrip()


class Tally:
    """Counts findings and keeps the first examples of each kind."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, example: str) -> None:
        """One more of a kind."""
        assert kind in KINDS
        self._counts[kind] += 1
        if len(self._examples[kind]) < EXAMPLES:
            self._examples[kind].append(example)

    def findings(self) -> tuple[Finding, ...]:
        """All that was counted, in the order of `KINDS`."""
        return tuple(
            Finding(kind, self._counts[kind], tuple(self._examples[kind]))
            for kind in KINDS
            if kind in self._counts
        )
