"""The environment of the templates of the rooms."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(room: str, *, escapes: bool) -> Environment:
    """Return the environment of the templates in a package. Rendering fails if a template lacks a value.

    escapes: whether values are escaped for HTML; otherwise the template's text is kept as it is, to its last newline.
    """
    return Environment(
        loader=PackageLoader(room, package_path="."),
        autoescape=escapes,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not escapes,
    )
