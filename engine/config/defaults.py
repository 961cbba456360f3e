"""Defaults that depend on other settings: on schedule, task, preset, and pretrained model."""

from sector.engine.config.checks import THOROUGH
from sector.engine.config.values import Values, flat, merged
from sector.engine.tasks import DEFAULT, find_task, is_task

# Beginning of the names of presets that are models of text.
TEXT_PRESET = "text-"

# Defaults that a schedule changes. The paper's has one digit per round, and therefore many short rounds.
SCHEDULES: dict[str, Values] = {
    "leaps": {"filter": {"checks": THOROUGH}, "supervised": {"target_agreement": 0.8}},
    "paper": {
        "supervised": {"trainer": {"num_shards": 2, "shard_rows": 32}},
        "round": {
            "trainer": {"num_shards": 4, "shard_rows": 16},
            "candidates": 600,
            "pool": 1,
            "cycle_steps": 60,
            "probe_lengths": 0,
            "max_leap": 1,
            "leap_agreement": 0.92,
            "missed_turns": False,
            "restated": False,
        },
    },
}

# Defaults for a pretrained model, which is larger and has learned already: AdamW alone, at lower learning rates.
PRETRAINED: Values = {
    "schedule": "paper",
    "supervised": {"trainer": {"learning_rate": 2e-4, "weight_decay": 0.01, "warmup_steps": 20}},
    "round": {"trainer": {"learning_rate": 1e-4, "weight_decay": 0.01}},
}
# Defaults of the presets of text for problems that can have hints. Without zeros in front a model wrote the last one by
# the count of digits, and agreed with itself up to 13 digits only (log.md, 2026-11-27).
HINTED: Values = {"text_layout": "hints", "digit_order": "lsd", "round": {"trainer": {"zeros": 8}}}
# Defaults for an adapter of a pretrained model, over those above: low ranks take higher learning rates.
LORA: Values = {
    "supervised": {"trainer": {"learning_rate": 2e-3}},
    "round": {"trainer": {"learning_rate": 1e-3}},
}
# Defaults of the presets of text.
TEXT: Values = {
    "schedule": "paper",
    "supervised": {
        "cycle_steps": 4000,
        "more_steps": 1500,
        "trainer": {
            "optimizer": "muon",
            "learning_rate": 1.5e-3,
            "muon_learning_rate": 6e-3,
            "num_shards": 4,
            "shard_rows": 16,
        },
    },
    "round": {
        "cycle_steps": 100,
        "max_cycles": 8,
        "trainer": {"optimizer": "muon", "learning_rate": 1e-3, "muon_learning_rate": 4e-3},
    },
    # Without a chain to the end 3 to 8 % of the labels were wrong from 13 digits on (log.md, 2026-11-27).
    "filter": {"checks": THOROUGH},
}


def _adapts(values: Values) -> bool:
    """Return whether nested settings ask for an adapter."""
    return any(key.endswith(".trainer.lora_rank") and value for key, value in flat(values))


def _can_have_hints(task: object) -> bool:
    """Return whether problems of a task can have hints. The module of the default task, which can, is not imported."""
    return task == DEFAULT or (isinstance(task, str) and is_task(task) and find_task(task).columns is not None)


def with_defaults(values: Values) -> Values:
    """Return the settings of a run over the defaults that they choose."""
    task, pretrained = values.get("task", DEFAULT), values.get("pretrained")
    if pretrained and isinstance(pretrained, str):
        values = merged(merged(PRETRAINED, LORA) if _adapts(values) else PRETRAINED, values)
    elif isinstance(preset := values.get("preset"), str) and preset.startswith(TEXT_PRESET):
        values = merged(merged(TEXT, HINTED) if _can_have_hints(task) else TEXT, values)
    # The defaults above are those of the default task, so its module need not be imported for them. Rates of a task
    # are for our own model, so those of a model of text come first.
    if task != DEFAULT and is_task(task):
        values = merged(find_task(task).settings, values)
    schedule = values.get("schedule", "leaps")
    return merged(SCHEDULES[schedule], values) if isinstance(schedule, str) and schedule in SCHEDULES else values
