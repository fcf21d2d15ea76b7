"""The sides of a comparison from runs, evaluated where they have not been in this way."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import storage, world
from pipeline.command_options import validated
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate.baselines import popularity
from pipeline.evaluate.catalogue import Catalogue
from pipeline.evaluate.compare import Side, refuse_different
from pipeline.evaluate.evaluate import Scorer
from pipeline.evaluate.of_run import BASELINES, evaluate_scorer, name_of, results_in
from pipeline.evaluate.per_user import PerUser, read_commit
from pipeline.evaluate.protocol import Protocol
from pipeline.manifest import Dataset, open_dataset
from pipeline.train.run import load_config
from pipeline.train.trained import best_checkpoint, load_checkpoint

Told = Callable[[str, int, int], None]


def sides_of(
    runs: Sequence[str],
    changes: dict[str, Any],
    baseline: str | None,
    data: str | None,
    warn: Callable[[str], None],
    progress: Told,
) -> tuple[Side, list[Side]]:
    """The baseline and the others, each with results for every user.

    runs: folders. changes: to the protocols of their recipes. baseline: one of the runs, by its
    folder or name, or the name of one of ``of_run.BASELINES``; None is the first run. data: another
    data set than the one each run was trained on. warn, progress: as in ``best_checkpoint`` and
    ``evaluate_run``.

    Raises LonghaulError, before anything is evaluated, where the runs differ in data or protocol.
    """
    asked = [_Asked(run, changes, data) for run in runs]
    names = Counter(one.recipe.name for one in asked)
    for one in asked:
        if names[one.recipe.name] > 1:
            one.name = one.url  # as long as it must be
    for one in asked[1:]:
        refuse_different(asked[0].side(None), one.side(None))
    place = 0
    if baseline is not None and baseline not in BASELINES:
        absolute = storage.absolute(baseline)
        chosen = [i for i, one in enumerate(asked) if absolute == one.url or baseline == one.name]
        if not chosen:
            known = ", ".join([*(one.name for one in asked), *BASELINES])
            raise LonghaulError(f"the baseline {baseline!r} is none of {known}")
        place = chosen[0]
    elif baseline is None and len(asked) < 2:
        raise LonghaulError(
            "a comparison needs two runs, or one and --baseline with the name of a baseline"
        )
    sides = [one.side(_evaluated(one, None, warn, progress)) for one in asked]
    if baseline in BASELINES:
        assert baseline is not None
        return asked[0].side(_evaluated(asked[0], baseline, warn, progress), baseline), sides
    return sides[place], sides[:place] + sides[place + 1 :]


class _Asked:
    """A run, and how it is to be evaluated."""

    def __init__(self, run: str, changes: dict[str, Any], data: str | None) -> None:
        self.recipe: Recipe = load_config(run)
        self.url = storage.absolute(run)
        self.name = self.recipe.name
        self.dataset: Dataset = open_dataset(data or self.recipe.data.path)
        kept = self.recipe.evaluation.model_dump()
        self.protocol: Protocol = validated(Protocol, {**kept, **changes})

    def folder(self, scorer: str, step: int | None) -> str:
        name = name_of(scorer, step, self.protocol, self.dataset.fingerprint)
        return storage.join(results_in(self.recipe.run_url), name)

    def side(self, found: tuple[str, PerUser] | None, name: str | None = None) -> Side:
        """The side of what was found; before that, what data and protocol will be."""
        if found is not None:
            return Side(name or self.name, *found)
        planned = PerUser(
            scorer=self.recipe.model.name,
            step=None,
            protocol=self.protocol,
            data=self.dataset.fingerprint,
            catalogue_size=self.dataset.manifest.catalogue_size,
            users=0,
            metrics=(),
            parts=(),
        )
        return Side(self.name, "", planned)


def _evaluated(
    asked: _Asked, baseline: str | None, warn: Callable[[str], None], progress: Told
) -> tuple[str, PerUser]:
    """The folder of the run's results for each user and what is in it; made where it is missing."""
    scorer = baseline or asked.recipe.model.name
    best = None if baseline else best_checkpoint(asked.url, warn)
    step = None if best is None else best.state.step
    folder = asked.folder(scorer, step)
    found = read_commit(folder)
    if found is not None:
        return folder, found
    placement = asked.recipe.placement
    with world.alone(placement.device, placement.threads) as here:
        made: Scorer
        if best is None:
            made = BASELINES[scorer](asked.dataset, here)
        else:
            made = load_checkpoint(best, here.device).scorer()
        evaluate_scorer(
            scorer,
            step,
            made,
            asked.dataset,
            asked.protocol,
            here,
            output=results_in(asked.recipe.run_url),
            catalogue=Catalogue(popularity(asked.dataset, here).counts),
            per_user=True,
            progress=progress,
        )
    found = read_commit(folder)
    assert found is not None, "it was just committed"
    return folder, found
