"""Text files made from the templates of this room."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from sector.engine.shares import percent


def rendered(template: str, **values: object) -> str:
    """Return the text of a template with values; a value that it needs and does not get is an error."""
    environment = Environment(
        loader=PackageLoader("sector.engine.api", package_path="."),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(template).render(**values)
