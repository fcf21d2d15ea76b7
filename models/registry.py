"""Models by name. A new model is one file and one line here."""

from models.base import ModelConfig, SequentialModel
from models.bert4rec import BERT4Rec, BERT4RecConfig
from models.control import Control, ControlConfig
from models.elastic import Elastic, ElasticConfig
from models.hydrarec import HydraRec, HydraRecConfig
from models.lrurec import LRURec, LRURecConfig
from models.recgrela import RecGRELA, RecGRELAConfig
from models.sasrec import SASRec, SASRecConfig

_MODELS: dict[str, tuple[type[ModelConfig], type[SequentialModel]]] = {
    "bert4rec": (BERT4RecConfig, BERT4Rec),
    "control": (ControlConfig, Control),
    "elastic": (ElasticConfig, Elastic),
    "hydrarec": (HydraRecConfig, HydraRec),
    "lrurec": (LRURecConfig, LRURec),
    "recgrela": (RecGRELAConfig, RecGRELA),
    "sasrec": (SASRecConfig, SASRec),
}


def names() -> list[str]:
    """The models there are."""
    return sorted(_MODELS)


def config_of(name: str) -> type[ModelConfig]:
    """The settings of the model called ``name``; KeyError where there is none."""
    return _MODELS[name][0]


def build(config: ModelConfig, catalogue_size: int) -> SequentialModel:
    """A freshly initialised model; torch's default generator decides the weights."""
    model: type = _MODELS[config.name][1]
    built: SequentialModel = model(config, catalogue_size)
    return built
