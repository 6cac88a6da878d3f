"""Results to figures to one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from batchfree._errors import ConfigError
from batchfree.bench.results import Bench
from batchfree.experiments.detection_results import DetectionResults
from batchfree.experiments.results import Results

__all__ = ["check_installed", "write_bench_page", "write_detection_report", "write_report"]

_LIBRARIES = ("plotly", "jinja2", "markupsafe", "matplotlib")


def check_installed() -> None:
    """Raises ConfigError unless the libraries of the `report` extra are installed."""
    for library in _LIBRARIES:
        if find_spec(library) is None:
            raise _missing(library)


def _missing(library: str) -> ConfigError:
    return ConfigError(
        f'the report needs {library}, which is not installed: pip install "batchfree[report]"'
    )


def write_report(
    results: Results | Sequence[Results],
    output: str | os.PathLike[str],
    *,
    figures: bool = True,
) -> Path:
    """Write results as one HTML page that needs nothing but itself, and figures beside it.

    Args:
        results: what `batchfree.experiments.results.read_results` gives; several stand one under
            the other. Incomplete results are drawn as far as they go, and the page says what is
            missing.
        output: the page, such as `report.html`; folders above it are made.
        figures: also write `report-summary` and `report-curves`, each as `.png` and `.svg`, where
            there are rows to draw (`report-2-summary` and so on for the second results).

    Returns:
        The page's path.

    Raises:
        ConfigError: a library of the `report` extra is not installed, or `results` is empty.
        OSError: a file cannot be written; the message names it and what to do.

    Example:
        >>> import tempfile
        >>> results = Results("batch-size", "isolated", "quick", (32, 2), (), "batchfree demo",
        ...                   "2026-01-31T12:00:00+00:00")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(results, f"{folder}/report.html")
        ...     "No run has finished yet" in page.read_text()
        True
    """
    several = [results] if isinstance(results, Results) else list(results)
    try:
        from batchfree.report.page import write

        return write(several, output, figures)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        raise _missing(library) from None


def write_detection_report(
    results: Sequence[DetectionResults],
    output: str | os.PathLike[str],
    *,
    figures: bool = True,
) -> Path:
    """Write detection experiments as one HTML page that needs nothing but itself.

    The scenes of the pictures are made anew from their ids; one that has changed since is left out
    and counted on the page.

    Args:
        results: what `batchfree.experiments.store.read_file(path, DetectionResults)` gives; at
            least one. Incomplete results are drawn as far as they go.
        output: the page, such as `report.html`; folders above it are made.
        figures: also write `report-curves` as `.png` and `.svg`, where there are rows to draw; one
            for each batch (`report-curves-batch-2`) of a detection experiment that has several.

    Returns:
        The page's path.

    Raises:
        ConfigError: a library of the `report` or `detect` extra is not installed, or there is no
            result.
        ResultsError: a detection that does not fit its scene.
        OSError: a file cannot be written; the message names it and what to do.
    """
    if find_spec("faster_coco_eval") is None:
        raise ConfigError(
            "the pictures need faster_coco_eval, which is not installed: "
            'pip install "batchfree[detect]"'
        )
    try:
        from batchfree.report.detection_page import write

        return write(results, output, figures)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        raise _missing(library) from None


def write_bench_page(benches: Sequence[Bench], output: str | os.PathLike[str]) -> Path:
    """Write benchmarks as one HTML page that needs nothing but itself.

    Args:
        benches: what `batchfree.bench.results.read_bench` gives; at least one.
        output: the page, such as `bench.html`; folders above it are made.

    Returns:
        The page's path.

    Raises:
        ConfigError: a library of the `report` extra is not installed, or there is no benchmark.
        OSError: a file cannot be written; the message names it and what to do.
    """
    try:
        from batchfree.report.bench_page import write

        return write(benches, output)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _LIBRARIES:
            raise
        raise _missing(library) from None
