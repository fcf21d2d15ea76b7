"""The Weights & Biases run of a training run: one for all its attempts and evaluations.

No training run waits for W&B, or fails with it. Its calls go through a queue to a thread of their
own; where its server is away the attempt is kept offline, and where its log could not be sent whole
a warning says what to sync. Only settings that can never work, as a missing key, are an error.
"""

import contextlib
import queue
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import MANIFEST, Dataset
from pipeline.tracking.config import Mode
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Best
from pipeline.train.run import State, versions

_START_SECONDS = 20.0  # for the server to answer at the start; then the attempt is kept offline
_LINEAGE_SECONDS = 20.0  # for artifacts, which wait for the server, unlike numbers
_END_SECONDS = 60.0  # for what is not yet sent when an attempt ends
_SPARE_SECONDS = 10.0  # for W&B's own process to keep to that


class WandbRun:
    """What one attempt adds to the run, or an evaluation (``attempt`` None).

    facts: for the run's configuration, beside the recipe.

    W&B counts its own steps anew after every offline restart, so the training step is logged as a
    metric, and is the axis of all others.

    Raises LonghaulError where W&B refuses the settings of a first attempt; a later one is kept
    offline, since a run that has come so far does not end for it.
    """

    def __init__(self, recipe: Recipe, attempt: int | None, facts: dict[str, Any]) -> None:
        self._recipe = recipe
        self._id = _kept_id(recipe)
        self._folder = _folder_for(recipe.run_url)
        self._sent = False
        self._run: Any = self._begin(recipe.tracking.wandb, attempt)
        known = {**recipe.model_dump(mode="json"), **facts, "versions": versions()}
        self._run.config.update(known, allow_val_change=True)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._acts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Log numbers; ``step`` is the training step they belong to."""
        self._acts.put(lambda: self._run.log(record))

    def add_lineage(self, dataset: Dataset, best: Best | None) -> None:
        """What the run trained on, its newest checkpoint and its best. They stay where they are."""
        self._acts.put(lambda: _within(_LINEAGE_SECONDS, lambda: self._add_lineage(dataset, best)))

    def add_evaluations(
        self, summary: dict[str, float], columns: list[str], rows: list[list[Any]]
    ) -> None:
        """What evaluation found: numbers of the run, a table of all."""
        self._acts.put(lambda: self._add_evaluations(summary, columns, rows))

    def add_report(self, page: str, pictures: dict[str, bytes]) -> None:
        """A page (HTML) and its pictures (PNG)."""
        self._acts.put(lambda: self._add_report(page, pictures))

    def add_bundle(self, url: str, facts: dict[str, Any]) -> None:
        """What the run was exported to. It stays where it is."""
        self._acts.put(lambda: _within(_LINEAGE_SECONDS, lambda: self._add_bundle(url, facts)))

    def close(self, state: State) -> None:
        """End the attempt with the state that the run is in; takes a minute or so at most."""
        self._acts.put(lambda: self._finish(state))
        self._acts.put(None)
        self._thread.join(_LINEAGE_SECONDS + _END_SECONDS + _SPARE_SECONDS)
        if self._thread.is_alive():
            self._warn("W&B does not answer")
            _end_service()
        if not storage.is_local(self._recipe.run_url):
            self._move_log_to_bucket()

    def _begin(self, mode: Mode, attempt: int | None) -> Any:
        import wandb

        recipe, commit = self._recipe, versions()["commit"]
        tracking = recipe.tracking
        try:
            return wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group,
                tags=tracking.tags,
                id=self._id,
                name=recipe.name,
                mode=mode,
                resume="allow",
                dir=self._folder,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    # Of git the commit is enough: what is not committed may not be for others.
                    disable_git=True,
                    git_commit=None if commit == "unknown" else commit,
                    init_timeout=_START_SECONDS,
                    login_timeout=_START_SECONDS,
                    finish_timeout=_END_SECONDS,
                    finish_timeout_raises=True,
                    x_update_finish_state=attempt is not None,
                ),
            )
        except Exception as error:
            refused = isinstance(error, wandb.errors.UsageError | wandb.errors.AuthenticationError)
            if refused and attempt == 1:
                raise LonghaulError(
                    f"W&B refused the run: {_first_line(error)}; log in, or set tracking.wandb to "
                    "offline or disabled"
                ) from error
            if mode == "offline":
                raise
            self._warn(f"W&B is away ({_first_line(error)}), this attempt is kept offline")
            wandb.teardown()  # its service holds on to the run that did not begin
            return self._begin("offline", attempt)

    def _work(self) -> None:
        """Act in order. Of failures only the first is told."""
        failed = False
        while (act := self._acts.get()) is not None:
            try:
                act()
            except Exception as error:
                if not failed:
                    self._warn(f"W&B failed ({_first_line(error)})")
                failed = True

    def _add_lineage(self, dataset: Dataset, best: Best | None) -> None:
        self._use_data(dataset)
        self._add_checkpoints(best)

    def _use_data(self, dataset: Dataset) -> None:
        import wandb

        manifest, fingerprint = dataset.manifest, dataset.fingerprint
        counts = {"items": manifest.catalogue_size, "users": manifest.users}
        facts = {**counts, "events": manifest.events, "fingerprint": fingerprint}
        artifact = wandb.Artifact(f"data-{fingerprint[:12]}", "dataset", metadata=facts)
        artifact.add_reference(_uri(storage.join(dataset.url, MANIFEST)), checksum=False)
        # The public method waits for the server, and refuses offline runs, which sync later.
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _add_checkpoints(self, best: Best | None) -> None:
        import wandb

        url = self._recipe.run_url
        places = checkpoint.places_in(url)
        for place in places:
            is_best = best is not None and place.step == best.step
            if not is_best and place != places[-1]:
                continue
            artifact = wandb.Artifact(
                f"{self._id}-checkpoint",
                "model",
                metadata={"step": place.step, "recipe_hash": self._recipe.hash()},
            )
            artifact.add_reference(_uri(place.url(url)), checksum=False)
            # The last one logged is W&B's "latest".
            self._run.log_artifact(artifact, aliases=["best"] if is_best else [])

    def _add_bundle(self, url: str, facts: dict[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self._id}-bundle", "bundle", metadata=facts)
        artifact.add_reference(_uri(url), checksum=False)
        self._run.log_artifact(artifact)

    def _add_evaluations(
        self, summary: dict[str, float], columns: list[str], rows: list[list[Any]]
    ) -> None:
        import wandb

        self._run.log({"evaluations": wandb.Table(columns=columns, data=rows)})
        self._run.summary.update(summary)

    def _add_report(self, page: str, pictures: dict[str, bytes]) -> None:
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            shown: dict[str, Any] = {"page": wandb.Html(page)}
            for name, picture in pictures.items():
                path = Path(folder) / f"{name}.png"
                path.write_bytes(picture)
                shown[f"pictures/{name}"] = wandb.Image(str(path))
            self._run.log(shown)

    def _finish(self, state: State) -> None:
        import wandb

        if state == "preempted":
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=int(state != "done"))
            self._sent = not self._run.offline
        finally:
            wandb.teardown()  # its service writes the whole log only when it ends

    def _move_log_to_bucket(self) -> None:
        folder = Path(self._folder)
        if not self._sent:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    to = storage.join(self._recipe.run_url, path.relative_to(folder).as_posix())
                    storage.write_bytes(to, path.read_bytes())
        shutil.rmtree(folder)

    def _warn(self, problem: str) -> None:
        print(
            f"warning: {problem}: training goes on; send what is missing with `wandb sync` on the "
            f"runs in {storage.join(self._recipe.run_url, 'wandb')}",
            file=sys.stderr,
            flush=True,
        )


def _kept_id(recipe: Recipe) -> str:
    """The id of the recipe's run; a run of the same name in another folder has another."""
    url = storage.join(recipe.run_url, "wandb.json")
    if not storage.exists(url):
        storage.write_json(url, {"id": f"{recipe.name}-{uuid.uuid4().hex[:8]}"})
    found: str = storage.read_json(url)["id"]
    return found


def _folder_for(run_url: str) -> str:
    """Where W&B writes: the run's folder, or a passing one for a run in a bucket."""
    if storage.is_local(run_url):
        return run_url
    return tempfile.mkdtemp(prefix="longhaul-wandb-")


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Act in a thread. Raises TimeoutError where it is not through in time, and leaves it alone."""
    problems: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=run, name="wandb-lineage", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    if problems:
        raise problems[0]


def _end_service() -> None:
    """End W&B's processes, for which its own exit function would wait without end."""
    import wandb

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("wandb-"):
                child.kill()
    with contextlib.suppress(Exception, SystemExit):  # it finds them gone, and forgets them
        wandb.teardown()


def _uri(url: str) -> str:
    return f"file://{url}" if storage.is_local(url) else url


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
