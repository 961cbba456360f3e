"""Text files made from the templates of this room."""

from sector.engine.report.templates import environment
from sector.engine.shares import percent


def rendered(template: str, **values: object) -> str:
    """Return the text of a template with values; a value that it needs and does not get is an error."""
    texts = environment("sector.engine.api", escapes=False)
    texts.filters["percent"] = percent
    return texts.get_template(template).render(**values)
