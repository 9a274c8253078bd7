"""One HTML page that needs nothing beside itself: no script, no font, no picture from anywhere else."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
figure { margin: 0; }
figcaption, .small { color: var(--muted); font-size: .875rem; }
.grid { display: grid; margin-top: 1.25rem; gap: 1.5rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.wide { overflow-x: auto; max-width: 100%; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; } thead th { border-bottom-color: var(--muted); }
tbody th { font-weight: 400; white-space: normal; min-width: 7.5rem; }
th:first-child { text-align: left; padding-left: 0; }
pre { background: color-mix(in srgb, var(--ink) 7%, var(--paper)); padding: .7rem .9rem; border-radius: .4rem;
  overflow-x: auto; font-size: .85rem; }
svg.chart { display: block; width: 100%; max-width: 36rem; height: auto; overflow: visible;
  stroke-linejoin: round; stroke-linecap: butt; }
.key svg.chart { display: inline-block; width: 2.6rem; vertical-align: middle; }
.pixels { image-rendering: pixelated; }
img { display: block; max-width: 100%; height: auto; }
.row { display: flex; gap: .6rem; margin-bottom: .6rem; width: max-content; }
.row figure { width: 4.6rem; } .row figure:first-child { margin-right: 1rem; }
.row img { width: 4.6rem; height: 4.6rem; border: 3px solid transparent; }
.row .same img { border: 3px solid var(--0); } .row .other img { border: 3px dashed var(--1); }
.row figcaption { font-size: .75rem; line-height: 1.25; overflow: hidden; text-overflow: ellipsis; }
"""


def is_by(generator: str, index: Path) -> bool:
    """Whether a file is a page of this generator."""
    return index.is_file() and f'content="{generator}"' in index.read_text(errors="replace")[:2000]


class Markup(str):
    """Text that is HTML already."""


def text(value: object) -> Markup:
    """Anything as text of a page: what is no `Markup` is escaped."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(value))))


def element(tag: str, *content: object, **attributes: str) -> Markup:
    """`element("p", "a < b", class_="small")`."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{given}>{''.join(map(text, content))}</{tag}>")


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table that scrolls by itself where the page is too narrow; the first cell of a row is its name."""
    top = element("tr", *(element("th", name, scope="col") for name in head))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    whole = element("table", element("thead", top), element("tbody", *body))
    scroll = element("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)
    return element("figure", element("figcaption", caption), scroll)


def figure(content: Markup, caption: object) -> Markup:
    return element("figure", content, element("figcaption", caption))


def picture(image: Image.Image, alt: str, scale: float = 1) -> Markup:
    """A picture in the page itself, without loss; `scale` is what it is shown at."""
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True)
    data = base64.b64encode(out.getvalue()).decode()
    size = {"width": str(round(image.width * scale)), "height": str(round(image.height * scale))}
    given = "".join(f' {name}="{value}"' for name, value in size.items())
    return Markup(f'<img class="pixels" src="data:image/webp;base64,{data}" alt="{text(alt)}"{given}>')


def page(title: str, body: Iterable[Markup], light: str, dark: str, generator: str) -> str:
    """The whole page, in ASCII, so that no locale can spoil it.

    Args:
        light, dark: CSS variables of either.
        generator: by which `is_by` knows the page again.
    """
    variables = f":root {{ color-scheme: light dark; {light} }}"
    variables += f"\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser itself fetches nothing
    parts = (
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="{generator}">',
        f"<title>{text(title)}</title>",
        f"<style>{variables}{STYLE}</style></head>",
        "<body>",
        *body,
        "</body>",
        "</html>\n",
    )
    return "\n".join(parts).encode("ascii", "xmlcharrefreplace").decode()
