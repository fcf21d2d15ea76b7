"""Evaluation of a run: its best model and the baselines, kept as JSON in the run's folder."""

import hashlib
from collections.abc import Callable, Iterator

import torch
from pydantic import BaseModel, ConfigDict

from models.batch import PackedBatch
from pipeline import storage
from pipeline.evaluate.baselines import popularity, recent_popularity
from pipeline.evaluate.evaluate import Scorer, evaluate
from pipeline.evaluate.protocol import Protocol, Result
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

    def file_name(self) -> str:
        """Another scorer, step or protocol, another file."""
        protocol = hashlib.sha256(self.result.protocol.model_dump_json().encode()).hexdigest()[:8]
        step = "" if self.step is None else f"-step-{self.step:08d}"
        scorer = self.scorer.replace(" ", "-")
        return f"{self.result.protocol.split}-{scorer}{step}-{protocol}.json"


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


def evaluate_run(
    trained: Trained,
    dataset: Dataset,
    protocol: Protocol,
    world: World,
    *,
    baselines: bool = False,
    truth: Truth | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Evaluation]:
    """Evaluate the model, then, as asked, popularity, recent popularity, and the optimum.

    Each evaluation is written to the run's folder when it is complete.
    """
    scorers: list[tuple[str, int | None, Callable[[], Scorer]]] = [
        (trained.recipe.model.name, trained.step, trained.scorer)
    ]
    if baselines:
        scorers.append(("popularity", None, lambda: popularity(dataset, world)))
        scorers.append(("recent popularity", None, lambda: recent_popularity(dataset, world=world)))
    if truth is not None:
        scorers.append(("optimum", None, lambda: TruthScorer(truth, dataset)))
    for name, step, make in scorers:

        def told(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        result = evaluate(dataset, make(), protocol, world, told)
        evaluation = Evaluation(scorer=name, step=step, result=result)
        if world.rank == 0:
            storage.write_json(
                storage.join(trained.recipe.run_url, "eval", evaluation.file_name()),
                evaluation.model_dump(mode="json"),
            )
        yield evaluation


def evaluations_in(run_url: str) -> list[Evaluation]:
    """The evaluations kept with a run."""
    base = storage.join(run_url, "eval")
    return [
        Evaluation.model_validate(storage.read_json(storage.join(base, name)))
        for name in storage.files_below(base)
        if name.endswith(".json")
    ]
