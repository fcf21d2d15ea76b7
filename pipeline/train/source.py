"""Where a new run's weights may come from: the best checkpoint of a run, or a bundle."""

import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import torch

import models
from models import ModelConfig
from pipeline import storage
from pipeline.config import parse_recipe
from pipeline.errors import DamagedError, LonghaulError
from pipeline.export.bundle import BUNDLE, ITEMS, Bundle, is_bundle, read_bundle
from pipeline.member import sha256
from pipeline.train.engine import Read
from pipeline.train.kept_items import keys_of_run
from pipeline.train.trained import best_checkpoint

_CHUNK_BYTES = 64 << 20  # of a bundle's file, hashed at once
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}

Shapes = dict[str, list[int]]
"""Of the parameters by name."""


@dataclass(frozen=True)
class Source:
    """Weights to begin with. keys: of its items, entry ``i - 1`` that of item ``i``.

    read: of ``weight/NAME`` alone. sha256: of what is in the files.
    """

    url: str
    step: int
    sha256: str
    model: ModelConfig
    shapes: Shapes
    read: Read
    keys: pa.Array | pa.ChunkedArray


def open_source(url: str, warn: Callable[[str], None]) -> Source:
    """The run or bundle at ``url``. Raises LonghaulError where there is neither, or it is damaged.

    A run's weights are checked as they are read, a bundle's here and now.
    """
    if is_bundle(url):
        return _of_bundle(read_bundle(url))
    if not storage.exists(storage.join(url, "config.yaml")):
        raise LonghaulError(
            f"train.init_from: no run or bundle at {url}: config.yaml and {BUNDLE} are missing"
        )
    kept = best_checkpoint(url, warn)
    recipe = parse_recipe(kept.commit.recipe, kept.url)
    return Source(
        url=url,
        step=kept.state.step,
        sha256=kept.commit.sha256,
        model=recipe.model,
        shapes={name: shape for name, shape in kept.commit.shapes.items() if "/" not in name},
        read=kept.read,
        keys=keys_of_run(url, kept, recipe),
    )


def _of_bundle(bundle: Bundle) -> Source:
    places: dict[str, _Place] = {}
    hashes = ""
    for name in sorted(bundle.files):
        if name.startswith("weights-"):
            _check(bundle, name)
            places |= _places(storage.join(bundle.url, name))
            hashes += bundle.files[name].sha256
    config = bundle.config
    return Source(
        url=bundle.url,
        step=config.step,
        sha256=sha256(hashes.encode()),
        model=models.config_of(config.model["name"]).model_validate(config.model),
        shapes={name: place.shape for name, place in places.items()},
        read=BundleRead(places),
        keys=_keys(bundle),
    )


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies: a file, its first byte there, its kind."""

    url: str
    at: int
    dtype: torch.dtype
    shape: list[int]


class BundleRead:
    """Reads weights of a bundle by their byte ranges, fp32."""

    def __init__(self, places: dict[str, _Place]) -> None:
        self._places = places

    def __call__(self, tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """See ``Read``."""
        place = self._places[tensor.removeprefix("weight/")]
        stop = math.prod(place.shape) if end is None else end
        if begin == stop:
            return torch.empty(0)
        size = place.dtype.itemsize
        content = storage.read_bytes(place.url, place.at + size * begin, place.at + size * stop)
        return torch.frombuffer(bytearray(content), dtype=place.dtype).float()


def _check(bundle: Bundle, name: str) -> None:
    """DamagedError where a file is not the one that was written; in memory is a part of it."""
    entry, url = bundle.files[name], storage.join(bundle.url, name)
    digest = hashlib.sha256()
    for start in range(0, entry.bytes, _CHUNK_BYTES):
        stop = min(start + _CHUNK_BYTES, entry.bytes)
        digest.update(storage.read_bytes(url, start, stop))
    if digest.hexdigest() != entry.sha256:
        raise DamagedError(f"{url} is damaged: it does not have the hash in {BUNDLE}")


def _places(url: str) -> dict[str, _Place]:
    """What a safetensors file holds, from its header."""
    (length,) = struct.unpack("<Q", storage.read_bytes(url, 0, 8))
    header = json.loads(storage.read_bytes(url, 8, 8 + length))
    return {
        name: _Place(
            url, 8 + length + told["data_offsets"][0], _DTYPES[told["dtype"]], told["shape"]
        )
        for name, told in header.items()
        if name != "__metadata__"
    }


def _keys(bundle: Bundle) -> pa.Array:
    tensors = bundle.tensors(ITEMS)
    if "keys" in tensors:
        return pa.array(tensors["keys"].numpy())
    content, offsets = (pa.py_buffer(tensors[name].numpy()) for name in ("bytes", "offsets"))
    return pa.LargeStringArray.from_buffers(len(tensors["offsets"]) - 1, offsets, content)
