"""Every knob of a run: a config that is malformed cannot exist."""

from llmnas.config.find import example_config
from llmnas.config.load import differences, load_config, make_config
from llmnas.config.relative import as_kept
from llmnas.config.run import Config
from llmnas.config.sections import HARDWARE_METRICS, METRICS, Device, HardwareConfig, SearchConfig

__all__ = [
    "HARDWARE_METRICS",
    "METRICS",
    "Config",
    "Device",
    "HardwareConfig",
    "SearchConfig",
    "as_kept",
    "differences",
    "example_config",
    "load_config",
    "make_config",
]
