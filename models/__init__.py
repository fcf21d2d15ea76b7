"""What is trained: a registry, one file a model, the operations they are made of, the losses."""

from models.base import ModelConfig, SequentialModel
from models.batch import PackedBatch
from models.registry import build, config_of, names

__all__ = ["ModelConfig", "PackedBatch", "SequentialModel", "build", "config_of", "names"]
