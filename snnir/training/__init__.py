"""Training and evaluation of classification networks on data sets by name."""

from snnir.training.config import PRESETS, TrainingConfig, configured, preset, read_config
from snnir.training.evaluate import Evaluation
from snnir.training.run import Trained, evaluate_network, train_network
from snnir.training.trainer import Diverged, Progress

__all__ = [
    "PRESETS",
    "Diverged",
    "Evaluation",
    "Progress",
    "Trained",
    "TrainingConfig",
    "configured",
    "evaluate_network",
    "preset",
    "read_config",
    "train_network",
]
