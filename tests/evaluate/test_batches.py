"""Who is scored together does not matter: other batches, the same ranks, on real data.

Every row of a matrix product is summed alike whatever rows stand beside it, as long as the library
takes the same kernel: CPUs' libraries do for the shapes of these models, none promises it. So the
size of a batch is no setting, and what it does to the ranks is looked at here.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import models
from pipeline.config import load_recipe
from pipeline.evaluate import ModelScorer, PerUserWriter, Protocol, Result, blocks, evaluate
from pipeline.evaluate.per_user import read_commit, read_parts
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.world import current_world
from tests.train.runs import ROOT

SIZES = (2_000, 16_384, 131_072)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, real_data: Callable[[str], Path]) -> Dataset:
    folder = str(tmp_path_factory.mktemp("ml-1m") / "set")
    prepare(PrepareOptions(inputs=[str(real_data("ml-1m.txt"))], output=folder))
    return open_dataset(folder)


@pytest.mark.parametrize("name", ["lrurec", "hydrarec"])
def test_ranks_do_not_depend_on_the_size_of_a_batch(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = load_recipe(str(ROOT / "configs" / "ml-1m" / f"{name}.yaml")).model
    torch.manual_seed(1)
    model = models.build(settings, dataset.manifest.catalogue_size).eval()
    protocol = Protocol(seen="window", users=900)

    def ranked(size: int) -> tuple[Result, list[list[int]]]:
        monkeypatch.setattr(blocks, "BATCH_TOKENS", size)
        folder = str(tmp_path / str(size))
        writer = PerUserWriter(folder, current_world())
        result = evaluate(dataset, ModelScorer(model), protocol, per_user=writer)
        writer.commit(name, None, protocol, dataset)
        found = read_commit(folder)
        assert found is not None
        table = pa.concat_tables(read_parts(folder, found, ["ranks"]))
        return result.model_copy(update={"seconds": 0.0}), table.column("ranks").to_pylist()

    first, *others = [ranked(size) for size in SIZES]
    assert len(np.unique(first[1])) > 300
    for other in others:
        assert other == first
