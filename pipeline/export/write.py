"""Export: a run's best checkpoint as a bundle."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from safetensors.torch import save as encode_tensors

from models import SequentialModel
from pipeline import storage
from pipeline.checked import FileEntry, write_file
from pipeline.errors import LonghaulError
from pipeline.evaluate.of_run import evaluations_in
from pipeline.export.bundle import (
    BUNDLE,
    CARD,
    CONFIG,
    FIRST_STATE,
    ITEMS,
    METRICS,
    STEP,
    Bundle,
    BundleConfig,
    Contents,
    read_bundle,
)
from pipeline.export.card import card
from pipeline.export.step import export_step, no_step
from pipeline.serve.keys import to_tensors
from pipeline.serve.model import ServedModel, hash_of
from pipeline.serve.of_run import served_of
from pipeline.tensor_files import divide
from pipeline.train.run import versions
from pipeline.train.trained import Trained, load_trained

Dtype = Literal["fp32", "bf16"]


def export_run(
    run_url: str,
    output: str,
    dtype: Dtype = "fp32",
    newest: bool = False,
    warn: Callable[[str], None] = warnings.warn,
) -> Bundle:
    """Write the bundle of a run's best checkpoint (or newest) to an empty folder.

    dtype: of the weights in the file; bf16 is half as large, and rounded. Raises LonghaulError
    where the run has no checkpoint, its data set is gone, or the folder holds anything; nothing is
    left behind then.
    """
    output = storage.absolute(output)
    _check_output(output)
    trained = load_trained(run_url, "cpu", warn, newest)
    if dtype == "bf16":
        with torch.no_grad():
            for parameter in trained.model.parameters():
                parameter.copy_(parameter.bfloat16())
    served = served_of(trained)
    evaluations = [
        found for found in evaluations_in(storage.absolute(run_url)) if found.step == trained.step
    ]
    with _all_or_nothing(output):
        config = _config(trained, served, dtype)
        files = [
            *_write_weights(output, served.model, dtype),
            _write_tensors(output, ITEMS, to_tensors(served.keys.array)),
            _write_json(output, METRICS, [one.model_dump(mode="json") for one in evaluations]),
        ]
        if config.step_function is not None:
            state = served.model.init_state(1)
            files.append(_write_tensors(output, FIRST_STATE, state))
            files.append(write_file(output, STEP, export_step(served.model)))
        files.append(_write_json(output, CONFIG, config.model_dump(mode="json")))
        page = card(config, evaluations, served)
        files.append(write_file(output, CARD, page.encode()))
        contents = Contents(files=files)
        storage.write_json(storage.join(output, BUNDLE), contents.model_dump(mode="json"))
    return read_bundle(output)


def _check_output(output: str) -> None:
    present = storage.files_below(output)
    if BUNDLE in present:
        raise LonghaulError(f"{output} already holds a bundle: choose another folder")
    ours = {CARD, CONFIG, FIRST_STATE, ITEMS, METRICS, STEP}
    # What an export that was killed left is written over.
    foreign = [name for name in present if name not in ours and not name.startswith("weights-")]
    if foreign:
        raise LonghaulError(f"{output} is not empty (it holds {foreign[0]}): choose another folder")


@contextmanager
def _all_or_nothing(output: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        storage.remove(output)
        raise


def _config(trained: Trained, served: ServedModel, dtype: Dtype) -> BundleConfig:
    model, recipe = trained.model, trained.recipe
    table, bias = model.item_scores()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    why_not = no_step(model)
    return BundleConfig(
        run=recipe.name,
        step=trained.step,
        model=recipe.model.model_dump(mode="json"),
        catalogue_size=len(served.keys),
        table=names[id(table)],
        bias=None if bias is None else names[id(bias)],
        causal=recipe.model.causal,
        masks=served.masks,
        window=served.window,
        serving=recipe.serving,
        step_function=STEP if why_not is None else None,
        no_step_function=why_not,
        protocol=recipe.evaluation.model_dump(mode="json"),
        recipe=recipe.identity(),
        recipe_hash=recipe.hash(),
        data=trained.fingerprint,
        dtype=dtype,
        model_hash=hash_of(model, served.keys),
        versions=versions(),
    )


def _write_weights(output: str, model: SequentialModel, dtype: Dtype) -> Iterator[FileEntry]:
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    parameters = list(model.named_parameters())
    sizes = (kind.itemsize * parameter.numel() for _, parameter in parameters)
    for number, places in enumerate(divide(sizes)):
        named = (parameters[place] for place in places)
        group = {name: parameter.detach().to(kind).contiguous() for name, parameter in named}
        yield _write_tensors(output, f"weights-{number:03d}.safetensors", group)


def _write_tensors(output: str, name: str, tensors: dict[str, torch.Tensor]) -> FileEntry:
    return write_file(output, name, encode_tensors(tensors))


def _write_json(output: str, name: str, document: Any) -> FileEntry:
    content = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
    return write_file(output, name, content)
