"""Small helpers for inline SVG.

Looks are in presentation attributes, never in ``style``: a strict content security policy (Jenkins) blocks styles, and shapes
would turn black. Horizontal positions are percentages, so that a chart fits every width while its text keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from markupsafe import Markup, escape

__all__ = ["Attributes", "chart", "element", "percent", "text"]

Attributes = Mapping[str, str | int | float]


def element(tag: str, attributes: Attributes, children: Iterable[Markup | str] = ()) -> Markup:
    """One element; attribute values and text children are escaped."""
    if "style" in attributes:
        raise ValueError("looks belong in presentation attributes: style is blocked under a strict policy")
    spelled = "".join(f' {name}="{escape(_number(item))}"' for name, item in attributes.items())
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{spelled}>{inner}</{tag}>" if inner else f"<{tag}{spelled}/>")


def _number(item: str | int | float) -> str:
    return f"{item:.3f}".rstrip("0").rstrip(".") if isinstance(item, float) else str(item)


def percent(share: float) -> str:
    """0.372 as "37.2%"."""
    return f"{_number(100.0 * share)}%"


def text(words: str | Iterable[Markup | str], x: str, y: float, *, anchor: str = "start", size: int = 12, **more: str | int) -> Markup:
    """A line of text in the page's own colour."""
    attributes: dict[str, str | int | float] = {"x": x, "y": y, "font-size": size, "text-anchor": anchor, "fill": "currentColor"}
    attributes |= {name.replace("_", "-"): item for name, item in more.items()}
    return element("text", attributes, [words] if isinstance(words, str) else words)


def chart(name: str, title: str, description: str, height: float, children: Iterable[Markup]) -> Markup:
    """A whole picture, as wide as the page, with a title and a description for those who do not see it."""
    head = [element("title", {"id": f"chart-{name}-title"}, [title]), element("desc", {"id": f"chart-{name}-desc"}, [description])]
    attributes: dict[str, str | int | float] = {
        "xmlns": "http://www.w3.org/2000/svg", "width": "100%", "height": height, "role": "img", "class": "chart",
        "aria-labelledby": f"chart-{name}-title chart-{name}-desc", "font-family": "system-ui, sans-serif",
    }  # fmt: skip
    return element("svg", attributes, [*head, *children])
