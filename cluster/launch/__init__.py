"""Launching: a recipe and a cluster become a job, whose files are kept with the run.

    RUN/launch/recipe.yaml      the recipe as it is placed on the cluster
    RUN/launch/cluster.yaml     the cluster
    RUN/launch/job.*            what the launcher was given
    RUN/launch/submitted.json   what became of it

A launcher is a module with ``FILE`` and four functions: ``render`` (pure: the file's text, or a
refusal), ``alive`` (whether the launcher holds a job of that run, running or waiting), ``submit``
(hands the file over in place of one that ended; the job's id) and ``last_words`` (what it knows of
an end that the run does not tell).
"""

import time
from types import ModuleType

import yaml
from pydantic import BaseModel, ConfigDict

from cluster.launch import kubernetes, ray_job, slurm
from cluster.launch.job import Job
from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.progress import Bar
from pipeline.train.progress import Follower
from pipeline.train.run import RunState, read_state, withdraw_stop

LAUNCHERS: dict[str, ModuleType] = {"ray": ray_job, "kubernetes": kubernetes, "slurm": slurm}
_SECONDS_BETWEEN_LOOKS = 2.0


class Submission(BaseModel):
    """A job that was handed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    launcher: str
    id: str
    time: float  # seconds since 1970


def keep(job: Job, launcher: str) -> str:
    """Render the job and write its files; what the launcher is to be given.

    Raises LonghaulError, with nothing written, where the launcher cannot hold the job.
    """
    module = LAUNCHERS[launcher]
    rendered: str = module.render(job)
    spec = yaml.safe_dump(job.spec.model_dump(mode="json"), sort_keys=False)
    files = {"recipe.yaml": job.recipe.to_yaml(), "cluster.yaml": spec, module.FILE: rendered}
    for name, text in files.items():
        storage.write_bytes(storage.join(job.folder, name), text.encode())
    return rendered


def submit(job: Job, launcher: str) -> Submission:
    """Keep the job's files and hand it over.

    Raises LonghaulError where the run has a job already, or the launcher does not take this one.
    """
    url = job.recipe.run_url
    if LAUNCHERS[launcher].alive(job):
        raise LonghaulError(
            f"run {job.recipe.name} has a {launcher} job that has not ended: "
            f"stop it first, with `longhaul stop {url}`"
        )
    rendered = keep(job, launcher)
    withdraw_stop(url)
    number = LAUNCHERS[launcher].submit(job, rendered)
    found = Submission(launcher=launcher, id=number, time=time.time())
    storage.write_json(storage.join(job.folder, "submitted.json"), found.model_dump())
    return found


def wait(job: Job, submission: Submission, before: int, bar: Bar | None) -> RunState:
    """How the run stands when the launcher does no more for it.

    before: the last attempt there was at submission. Raises LonghaulError where the job ended
    without beginning another.
    """
    module = LAUNCHERS[submission.launcher]
    follower = Follower(job.recipe, bar)
    while True:
        lives = module.alive(job)  # first: the run of a job that ended has told how it stands
        stands = read_state(job.recipe.run_url)
        begun = stands is not None and stands.attempt > before
        if begun and stands is not None:
            follower.look(stands.attempt)
            if stands.state == "done" or (not lives and stands.state != "running"):
                return stands
        if not lives:
            what = "ended without a word" if begun else "ended before the run began"
            said = module.last_words(job, submission.id).strip().splitlines()
            raise LonghaulError(
                f"{submission.launcher} job {submission.id} {what}: "
                f"{said[-1] if said else 'its log is empty'}"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
