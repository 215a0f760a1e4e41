"""Training and evaluation of networks on data sets by name."""

from snnir.training.config import (
    PRESETS,
    TrainingConfig,
    configured,
    default_recipe,
    preset,
    read_config,
)
from snnir.training.evaluate import Evaluation
from snnir.training.run import Trained, open_test, train_network
from snnir.training.trainer import Diverged, Progress

__all__ = [
    "PRESETS",
    "Diverged",
    "Evaluation",
    "Progress",
    "Trained",
    "TrainingConfig",
    "configured",
    "default_recipe",
    "open_test",
    "preset",
    "read_config",
    "train_network",
]
