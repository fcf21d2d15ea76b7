"""longhaul from Python: the parts of the chain, in the order of the data.

Each name is imported when it is first asked for, so that a server that loads a bundle needs
nothing that prepares or trains.
"""

from typing import TYPE_CHECKING

# With it comes ``pipeline``, which tells OpenMP how to wait before anything loads torch.
from pipeline.lazily import lazily

if TYPE_CHECKING:
    from models import PackedBatch as PackedBatch
    from models import SequentialModel as SequentialModel
    from models import build as build
    from pipeline.config import Recipe as Recipe
    from pipeline.config import load_recipe as load_recipe
    from pipeline.errors import LonghaulError as LonghaulError
    from pipeline.evaluate import ModelScorer as ModelScorer
    from pipeline.evaluate import Protocol as Protocol
    from pipeline.evaluate import Result as Result
    from pipeline.evaluate import evaluate as evaluate
    from pipeline.export.bundle import Bundle as Bundle
    from pipeline.export.bundle import read_bundle as read_bundle
    from pipeline.export.write import export_run as export_run
    from pipeline.manifest import Dataset as Dataset
    from pipeline.manifest import Manifest as Manifest
    from pipeline.manifest import open_dataset as open_dataset
    from pipeline.prepare import PrepareOptions as PrepareOptions
    from pipeline.prepare import prepare as prepare
    from pipeline.recommend import Request as Request
    from pipeline.recommend import read_candidates as read_candidates
    from pipeline.recommend import recommend as recommend
    from pipeline.recommend import recommend_users as recommend_users
    from pipeline.serve.recommender import Recommender as Recommender
    from pipeline.stream.stream import Stream as Stream
    from pipeline.stream.stream import StreamConfig as StreamConfig
    from pipeline.train.loop import train as train
    from pipeline.train.trained import Trained as Trained
    from pipeline.train.trained import load_trained as load_trained
    from pipeline.world import World as World
    from pipeline.world import alone as alone
    from pipeline.world import torchrun as torchrun

_HOMES = {
    "models": ("PackedBatch", "SequentialModel", "build"),
    "pipeline.config": ("Recipe", "load_recipe"),
    "pipeline.errors": ("LonghaulError",),
    "pipeline.evaluate": ("ModelScorer", "Protocol", "Result", "evaluate"),
    "pipeline.export.bundle": ("Bundle", "read_bundle"),
    "pipeline.export.write": ("export_run",),
    "pipeline.manifest": ("Dataset", "Manifest", "open_dataset"),
    "pipeline.prepare": ("PrepareOptions", "prepare"),
    "pipeline.recommend": ("Request", "read_candidates", "recommend", "recommend_users"),
    "pipeline.serve.recommender": ("Recommender",),
    "pipeline.stream.stream": ("Stream", "StreamConfig"),
    "pipeline.train.loop": ("train",),
    "pipeline.train.trained": ("Trained", "load_trained"),
    "pipeline.world": ("World", "alone", "torchrun"),
}

__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    """For completion."""
    return sorted(name for names in _HOMES.values() for name in names)
