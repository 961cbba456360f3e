"""What the weights of a model have learned: which task, and how they read and write it."""

from sector.engine.checkpoint import Model
from sector.engine.task import Layout, Task
from sector.engine.tasks import find_task
from sector.engine.text.model import TextModel


def learned(model: Model) -> tuple[Task, Layout]:
    """The task and the layout, plain variant. InputError for a model of text if its task has none of text."""
    if isinstance(model, TextModel):
        task = find_task(model.task)
        return task, task.text_layout(model.alphabet)
    task = find_task(model.config.task)
    return task, task.layout(model.config.digit_order)
