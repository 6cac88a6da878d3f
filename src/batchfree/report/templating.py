"""The frame that every page has: templates, colours of both themes, Plotly, all in one file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from batchfree.report.styles import Style, translucent


def fill(template: str, *, plots: dict[str, Any], styles: Iterable[Style], **values: Any) -> str:
    """A page's HTML.

    Args:
        template: a file in `templates`, which extends `base.html.j2`.
        plots: element id to Plotly's `data` and `layout`, and the `group` of its legend.
        styles: the looks that the page refers to, each by its key.
        values: the template's own, escaped where they are shown.
    """
    environment = Environment(
        loader=PackageLoader("batchfree.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = environment.loader.get_source  # type: ignore[union-attr]
    looks = {style.key: style for style in styles}.values()
    return environment.get_template(template).render(
        plots=plots,
        light=_variables(looks, dark=False),
        dark=_variables(looks, dark=True),
        # Ours or Plotly's, never a results file's: the only text that is not escaped.
        css=Markup(source(environment, "page.css")[0]),  # noqa: S704
        js=Markup(source(environment, "page.js")[0]),  # noqa: S704
        plotly=Markup(get_plotlyjs()) if plots else "",  # noqa: S704
        **values,
    )


def _variables(styles: Iterable[Style], dark: bool) -> dict[str, str]:
    found = {}
    for style in styles:
        color = style.dark if dark else style.light
        found[f"--line-{style.key}"] = color
        found[f"--band-{style.key}"] = translucent(color, 0.16 if dark else 0.13)
    return found
