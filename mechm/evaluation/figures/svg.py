"""A matplotlib figure as an SVG document that stands alone: described in words, for light and dark pages.

matplotlib writes the drawing. This adds a title and a description for readers who cannot see it, the dark colours, and
takes away what refers to other places: document type, metadata and the xlink namespace.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mechm.evaluation.figures.style import DARK, LIGHT, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"

FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif"
STYLE = (
    f"text{{font-family:{FONTS}!important}}@media (prefers-color-scheme:dark){{"
    + "".join(
        f'[style*="{name}: {LIGHT[role]}"]{{{name}:{DARK[role]}!important}}'
        for role in LIGHT
        for name in ("fill", "stroke")
    )
    + "}"
)
"""A drawn element's colours stand in its own style attribute, where the dark theme finds and replaces them."""


def to_svg(figure: Figure, title: str, description: str) -> str:
    """Write a figure, inside `figure_style`; equal figures give equal text.

    title: of the drawing and its subject. description: its numbers in words.
    """
    written = io.StringIO()
    absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=absent)
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314 (written by matplotlib just now)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        if HREF in element.attrib:
            element.set("href", element.attrib.pop(HREF))
    height = float(root.attrib["viewBox"].split()[3])
    size = {"width": f"{WIDTH:g}", "height": f"{height:g}", "viewBox": f"0 0 {WIDTH:g} {height:g}"}
    root.attrib = {"xmlns": SVG, **size, "role": "img", "aria-labelledby": "title desc"}
    for place, (tag, id_, words) in enumerate(
        (("title", "title", title), ("desc", "desc", description), ("style", "", STYLE))
    ):
        element = ElementTree.Element(tag, {"id": id_} if id_ else {})
        element.text, element.tail = words, "\n"
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
