"""The bundle: what it holds, and how it is read.

    BUNDLE/
      weights-000.safetensors ...   parameters by name
      items.safetensors             the key of every item
      config.json                   model, catalogue, protocol, recipe, what a state looks like
      metrics.json                  the evaluations of this very checkpoint
      first_state.safetensors       the state of a user without history
      step.pt2                      the step for torch.export.load, where there is one
      README.md                     model card
      bundle.json                   sizes and hashes of all files; written last

Reading needs torch, safetensors, pydantic and fsspec: nothing that trains, and no Parquet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors

import models
from models import SequentialModel
from pipeline import storage
from pipeline.checked import FileEntry, read_checked
from pipeline.errors import LonghaulError, first_mistake
from pipeline.serve.config import ServingConfig
from pipeline.serve.keys import ItemKeys, from_tensors
from pipeline.serve.model import ServedModel

BUNDLE = "bundle.json"
CONFIG, ITEMS, METRICS, CARD = "config.json", "items.safetensors", "metrics.json", "README.md"
STEP, FIRST_STATE = "step.pt2", "first_state.safetensors"
SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundleConfig(_Part):
    """What is in ``config.json``.

    model: its settings. table, bias: names of the parameters that score items, as
    ``hidden @ table.T + bias``; bias may be none. masks: whether token 0 behind the history asks
    for the next item. window: the most events that the model is given at once, null where there is
    no limit. step_function: the file, or null, and then why there is none. model_hash: what a state
    of a user must have been made with. recipe: what the run computed, without places.
    """

    schema_version: Literal[1] = 1
    run: str
    step: int
    model: dict[str, Any]
    catalogue_size: int
    table: str
    bias: str | None
    causal: bool
    masks: bool
    window: int | None
    serving: ServingConfig
    step_function: str | None
    no_step_function: str | None
    protocol: dict[str, Any]
    recipe: dict[str, Any]
    recipe_hash: str
    data: str
    dtype: Literal["fp32", "bf16"]
    model_hash: str
    versions: dict[str, str]


class Contents(_Part):
    """What is in ``bundle.json``."""

    schema_version: Literal[1] = 1
    files: list[FileEntry]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; every file is checked against ``bundle.json`` when it is read."""

    url: str
    config: BundleConfig
    files: dict[str, FileEntry]

    def read(self, name: str) -> bytes:
        """A file. DamagedError naming it where its bytes are not those that were written."""
        if name not in self.files:
            raise LonghaulError(f"{self.url} has no {name}")
        return read_checked(self.url, self.files[name], BUNDLE)

    def check(self) -> None:
        """DamagedError naming the first file whose bytes are not those that were written."""
        for name in self.files:
            self.read(name)

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors in a file."""
        try:
            found: dict[str, torch.Tensor] = decode_tensors(self.read(name))
        except SafetensorError as error:
            raise LonghaulError(f"{self.url}/{name} is no safetensors file: {error}") from error
        return found

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters by name, fp32 on the CPU, a file in memory at a time."""
        for name in self.files:
            if name.startswith("weights-"):
                for key, tensor in self.tensors(name).items():
                    yield key, tensor.float()

    def item_keys(self) -> ItemKeys:
        """The keys of the catalogue."""
        return ItemKeys(from_tensors(self.tensors(ITEMS)))

    def model(self) -> SequentialModel:
        """The model on the CPU, fp32, in evaluation mode."""
        config = models.config_of(self.config.model["name"]).model_validate(self.config.model)
        model = models.build(config, self.config.catalogue_size)
        wanted = {name: tensor.shape for name, tensor in model.named_parameters()}
        weights = dict(self.weights())
        for name, shape in wanted.items():
            if name not in weights or weights[name].shape != shape:
                found = tuple(weights[name].shape) if name in weights else "nothing"
                raise LonghaulError(
                    f"{self.url}: parameter {name} should be {tuple(shape)}, the bundle has {found}"
                )
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def served(self, device: torch.device | str = "cpu") -> ServedModel:
        """For serving."""
        return ServedModel(
            model=self.model().to(device),
            keys=self.item_keys(),
            rule=self.config.serving,
            window=self.config.window,
            masks=self.config.masks,
            hash=self.config.model_hash,
        )


def is_bundle(url: str) -> bool:
    """Whether a bundle lies at ``url``."""
    return storage.exists(storage.join(storage.absolute(url), BUNDLE))


def read_bundle(url: str) -> Bundle:
    """Open the bundle at ``url``.

    Raises LonghaulError where there is none, it has another schema version, or a file is damaged;
    weights are checked when they are read.
    """
    url = storage.absolute(url)
    where = storage.join(url, BUNDLE)
    if not storage.exists(where):
        raise LonghaulError(
            f"no bundle at {url}: {BUNDLE} is missing (write one with `longhaul export`; an "
            "interrupted one leaves none)"
        )
    contents = _validated(Contents, storage.read_json(where), where)
    files = {entry.path: entry for entry in contents.files}
    if CONFIG not in files:
        raise LonghaulError(f"{where} names no {CONFIG}")
    content = read_checked(url, files[CONFIG], BUNDLE)
    return Bundle(url, _validated(BundleConfig, content, storage.join(url, CONFIG)), files)


def _validated(kind: type[Any], content: Any, where: str) -> Any:
    try:
        if isinstance(content, bytes):
            return kind.model_validate_json(content)
        return kind.model_validate(content)
    except ValidationError as error:
        raise LonghaulError(f"{where}: {first_mistake(error)}") from error
