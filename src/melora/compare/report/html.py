"""A report as one HTML file that needs nothing else."""

from collections.abc import Mapping

from .parts import Page


def html_of(page: Page, svgs: Mapping[str, str]) -> str:
    """The page; all its text is escaped.

    Args:
        svgs: a picture's name -> its element, as drawing.render makes it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("melora.compare.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = loader.get_source(environment, "style.css")
    template = environment.get_template("report.html.j2")
    pictures = {name: Markup(svg) for name, svg in svgs.items()}
    return template.render(page=page, pictures=pictures, style=Markup(style))
