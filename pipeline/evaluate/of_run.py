"""Evaluation of a run: its best model and the baselines, kept as JSON in the run's folder."""

import functools
import hashlib
import warnings
from collections.abc import Callable, Iterator

import torch
from pydantic import BaseModel, ConfigDict

from models.batch import PackedBatch
from pipeline import storage
from pipeline.evaluate.baselines import popularity, recent_popularity
from pipeline.evaluate.catalogue import Catalogue
from pipeline.evaluate.cooccurrence import co_occurrence
from pipeline.evaluate.evaluate import Scorer, evaluate
from pipeline.evaluate.per_user import PerUserWriter
from pipeline.evaluate.protocol import RESULT_SCHEMA, Protocol, Result
from pipeline.evaluate.scores import DenseScores
from pipeline.manifest import Dataset
from pipeline.prepare.synth.truth import Truth
from pipeline.train.trained import Trained
from pipeline.world import World


class Evaluation(BaseModel):
    """A result and whose it is. step: of the checkpoint, None for what was not trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorer: str
    step: int | None
    result: Result

    @property
    def label(self) -> str:
        """The scorer, its step, and whether its candidates were sampled."""
        step = "" if self.step is None else f" (step {self.step:,})"
        sampled = self.result.protocol.candidates
        return f"{self.scorer}{step}" + ("" if sampled == "all" else f", {sampled:,} sampled")


def name_of(scorer: str, step: int | None, protocol: Protocol, data: str) -> str:
    """The name of an evaluation's files: another one for another scorer, step, protocol or data."""
    asked = hashlib.sha256((protocol.model_dump_json() + data).encode()).hexdigest()[:8]
    sampled = "" if protocol.candidates == "all" else f"-sampled-{protocol.candidates}"
    at = "" if step is None else f"-step-{step:08d}"
    return f"{protocol.split}{sampled}-{scorer.replace(' ', '-')}{at}-{asked}"


def results_in(run_url: str) -> str:
    """The folder of a run's evaluations."""
    return storage.join(run_url, "eval")


class TruthScorer:
    """Scores by the probabilities a synthetic log was drawn from: no model can do better."""

    def __init__(self, truth: Truth, dataset: Dataset) -> None:
        self._truth = truth
        keys = dataset.read_items().column("key").to_numpy()
        # Item ids follow the sorted keys of the items that occur; the truth knows them by key.
        self._keys = torch.cat([torch.zeros(1, dtype=torch.int64), torch.as_tensor(keys.copy())])

    def score(self, batch: PackedBatch) -> DenseScores:
        """See ``Scorer``."""
        parts = self._keys[batch.items].tensor_split(batch.offsets[1:-1])
        histories = [part[part > 0].numpy() for part in parts]
        probability = torch.from_numpy(self._truth.next_item_distribution(histories))
        scores = probability.new_zeros(len(histories), len(self._keys))
        scores[:, 1:] = probability[:, self._keys[1:] - 1]
        return DenseScores(scores)


# What every model must beat, by name.
BASELINES: dict[str, Callable[[Dataset, World], Scorer]] = {
    "popularity": popularity,
    "recent popularity": lambda dataset, world: recent_popularity(dataset, world=world),
    "co-occurrence": lambda dataset, world: co_occurrence(dataset, world=world),
}


def evaluate_run(
    trained: Trained,
    dataset: Dataset,
    protocol: Protocol,
    world: World,
    *,
    baselines: bool = False,
    truth: Truth | None = None,
    per_user: bool = False,
    output: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Evaluation]:
    """Evaluate the model, then, as asked, the baselines and the optimum.

    Each evaluation is written, when it is complete, to the folder ``output``, by default the run's;
    with ``per_user`` what was found for each user lies beside it.
    """
    scorers: list[tuple[str, int | None, Callable[[], Scorer]]] = [
        (trained.recipe.model.name, trained.step, trained.scorer)
    ]
    if baselines:
        for name, baseline in BASELINES.items():
            scorers.append((name, None, functools.partial(baseline, dataset, world)))
    if truth is not None:
        scorers.append(("optimum", None, lambda: TruthScorer(truth, dataset)))
    catalogue = Catalogue(popularity(dataset, world).counts)
    for name, step, make in scorers:
        yield evaluate_scorer(
            name,
            step,
            make(),
            dataset,
            protocol,
            world,
            output=output or results_in(trained.recipe.run_url),
            catalogue=catalogue,
            per_user=per_user,
            progress=progress,
        )


def evaluate_scorer(
    name: str,
    step: int | None,
    scorer: Scorer,
    dataset: Dataset,
    protocol: Protocol,
    world: World,
    *,
    output: str,
    catalogue: Catalogue,
    per_user: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Evaluate one scorer, and write what was found to the folder ``output``."""
    place = storage.join(output, name_of(name, step, protocol, dataset.fingerprint))
    writer = PerUserWriter(place, world) if per_user else None

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(name, done, total)

    result = evaluate(dataset, scorer, protocol, world, told, catalogue, writer)
    evaluation = Evaluation(scorer=name, step=step, result=result)
    if writer is not None:
        writer.commit(name, step, protocol, dataset)
    document = evaluation.model_dump(mode="json")
    world.on_rank_zero(lambda: storage.write_json(f"{place}.json", document))
    return evaluation


def evaluations_in(run_url: str, warn: Callable[[str], None] = warnings.warn) -> list[Evaluation]:
    """The evaluations kept with a run. warn: told of each file of another schema."""
    base, found = results_in(run_url), []
    for name in storage.files_below(base):
        if "/" in name or not name.endswith(".json"):
            continue  # what was found for each user
        url = storage.join(base, name)
        document = storage.read_json(url)
        version = document.get("result", {}).get("schema_version", 1)
        if version != RESULT_SCHEMA:
            warn(
                f"{url} is left out: its result has schema_version {version}, this longhaul reads "
                f"{RESULT_SCHEMA}; evaluate again"
            )
            continue
        found.append(Evaluation.model_validate(document))
    return found
