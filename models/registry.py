"""Models by name. A new model is one file and one line here."""

from models.base import ModelConfig, SequentialModel
from models.lrurec import LRURec, LRURecConfig
from models.sasrec import SASRec, SASRecConfig

_MODELS: dict[str, tuple[type[ModelConfig], type[SequentialModel]]] = {
    "lrurec": (LRURecConfig, LRURec),
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
