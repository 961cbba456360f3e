"""Settings of a run: names, types, ranges, defaults and meanings; reading and writing them as TOML.

May import: `tasks` and below. Open `run.py` first: all settings, a file per section. The defaults were found by
measuring (log.md); the paper does not state its own.
"""

from sector.engine.config.checks import CHECK_DOOR, CHECKS, MAX_CHECKS, REMAINDER, SHIFTED
from sector.engine.config.dataset import COMPRESSION, PART_ROWS, WINDOW_ROWS, Compression
from sector.engine.config.defaults import SCHEDULES
from sector.engine.config.filter import (
    FILTERS,
    LEAST_TEMPERATURE,
    MAX_K,
    MAX_TEMPERATURE,
    Filter,
    FilterName,
    PolicyName,
)
from sector.engine.config.round import RoundConfig
from sector.engine.config.run import (
    ENGINE_DOOR,
    ENGINES,
    MAY_CHANGE,
    RECIPE,
    NetworkValue,
    Preset,
    RunConfig,
    Schedule,
    run_config,
    vllm_config,
)
from sector.engine.config.supervised import SupervisedConfig
from sector.engine.config.toml import dump_config, parse_settings, read_config
from sector.engine.config.trainer import Precision, TrainerConfig
from sector.engine.config.values import MAX_DIGITS, MOST, Count, Settings, Values, flat, merged, validated
from sector.engine.config.vllm import VllmConfig
