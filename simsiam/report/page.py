"""Fill the templates of the pages that the commands `report` and `search` write."""

import io
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from simsiam.report import figures
from simsiam.report.records import replace_unprintable
from utils.text import cut_middle

TEMPLATES = Path(__file__).parent
MAX_CAPTION = 24  # characters in a line below a neighbour


def render_page(template_name: str, **variables: Any) -> str:
    """Fill a template. The page is ASCII, so that no encoding can damage it.

    Args:
        template_name: of a file in this folder.
        variables: of the template, in addition to the colours.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.finalize = make_printable
    environment.filters["encode"] = encode_picture
    environment.filters["cut"] = partial(cut_middle, kept=MAX_CAPTION)
    template = environment.get_template(template_name)
    page = template.render(variables, light=figures.LIGHT, dark=figures.DARK)
    return page.strip().encode("ascii", "xmlcharrefreplace").decode() + "\n"


def make_printable(value: Any) -> Any:
    """Return a value of the template as printable text. HTML of the template's macros is kept."""
    return value if isinstance(value, Markup) else replace_unprintable(value)


def encode_picture(picture: Image.Image) -> str:
    """Return a picture as a data URI."""
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=True, method=0)
    return figures.data_uri("webp", content.getvalue())
