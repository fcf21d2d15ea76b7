"""longhaul from Python: the parts of the chain, in the order of the data."""

# First, as OpenMP must know how to wait before models loads torch.
from pipeline.errors import LonghaulError  # isort: split

from models import PackedBatch, SequentialModel, build
from pipeline.config import Recipe, load_recipe
from pipeline.evaluate import ModelScorer, Protocol, Result, evaluate
from pipeline.manifest import Dataset, Manifest, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.recommend import Request, read_candidates, recommend, recommend_users
from pipeline.stream.stream import Stream, StreamConfig
from pipeline.train.loop import train
from pipeline.train.trained import Trained, load_trained
from pipeline.world import World, alone, torchrun

__all__ = [
    "Dataset",
    "LonghaulError",
    "Manifest",
    "ModelScorer",
    "PackedBatch",
    "PrepareOptions",
    "Protocol",
    "Recipe",
    "Request",
    "Result",
    "SequentialModel",
    "Stream",
    "StreamConfig",
    "Trained",
    "World",
    "alone",
    "build",
    "evaluate",
    "load_recipe",
    "load_trained",
    "open_dataset",
    "prepare",
    "read_candidates",
    "recommend",
    "recommend_users",
    "torchrun",
    "train",
]
