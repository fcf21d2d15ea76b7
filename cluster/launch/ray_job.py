"""A job on a Ray cluster that is already there, by ``ray job submit``'s own client.

The submission id is the run's name: what runs cannot be submitted twice, and what has ended is
submitted again under the same id, and resumes. A job does not tell a preempted run from
a failed one; how the run stands is in its ``state.json``.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.launch.job import Job, check_secrets_are_files
from pipeline import storage
from pipeline.errors import LonghaulError

FILE = "job.json"
# Beside what .gitignore names, which Ray leaves out by itself.
_NOT_PACKED = [".git", ".venv", "venv", "data", "runs", "wandb", "**/*.tar", "**/*.parquet"]


def render(job: Job) -> str:
    """The submission as JSON. Raises LonghaulError where the cluster cannot hold the job."""
    spec = job.spec
    if spec.time_limit is not None:
        raise LonghaulError("a Ray job has no time_limit: leave it out, or launch on SLURM")
    check_secrets_are_files(job, "a Ray job")
    runtime: dict[str, Any] = {"env_vars": job.environment()}
    if spec.ray.working_dir is not None:
        runtime |= {
            "working_dir": storage.absolute(spec.ray.working_dir),
            "excludes": _NOT_PACKED,
        }
    document = {
        "address": spec.ray.address,
        "submission_id": job.recipe.name,
        "entrypoint": job.command_line,
        "entrypoint_num_cpus": 0,
        "runtime_env": runtime,
        "metadata": {"run": job.recipe.run_url},
    }
    return json.dumps(document, indent=2) + "\n"


def alive(job: Job) -> bool:
    """Whether the cluster works on the run's job, or will."""
    from ray.job_submission import JobStatus

    with _client(job.spec.ray.address) as client:
        known = {known.submission_id: known.status for known in client.list_jobs()}
        return known.get(job.recipe.name) in (JobStatus.PENDING, JobStatus.RUNNING)


def submit(job: Job, rendered: str) -> str:
    """Submit in place of an ended job of the same run."""
    wanted = json.loads(rendered)
    name: str = wanted["submission_id"]
    with _client(wanted.pop("address")) as client:
        if name in {known.submission_id for known in client.list_jobs()}:
            client.delete_job(name)
        client.submit_job(**wanted)
    return name


def last_words(job: Job, number: str) -> str:
    """The end of what the job printed."""
    with _client(job.spec.ray.address) as client:
        info = client.get_job_info(number)
        return f"{info.message or ''}\n{client.get_job_logs(number)}"


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Ray's own client of jobs, whose failures become one line."""
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard", "ray._private"):  # every file it packs, otherwise
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        told = str(error).strip().splitlines()
        raise LonghaulError(
            f"the Ray cluster at {address}: {told[0] if told else repr(error)}"
        ) from error
