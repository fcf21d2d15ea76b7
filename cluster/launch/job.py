"""A job: a recipe placed on a cluster."""

import json
import shlex
import subprocess
from dataclasses import dataclass

from cluster.spec import ClusterSpec
from pipeline import storage
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.secrets import FILES
from pipeline.train.run import LAUNCHED


@dataclass(frozen=True)
class Job:
    """What every launcher needs. recipe: placed on the cluster, with absolute places."""

    recipe: Recipe
    spec: ClusterSpec

    @property
    def folder(self) -> str:
        """Where the job's files are kept."""
        return storage.join(self.recipe.run_url, "launch")

    @property
    def command_line(self) -> str:
        """What starts or resumes the run, where longhaul is installed or the working directory."""
        recipe = storage.join(self.folder, "recipe.yaml")
        return shlex.join([self.spec.python, "-m", "pipeline", "train", recipe])

    def environment(self) -> dict[str, str]:
        """Variables for every process of the job; of secrets only where they lie."""
        files = {name: held.file for name, held in self.spec.secrets.items() if held.file}
        found = self.spec.env | {LAUNCHED: "1"}
        return found | ({FILES: json.dumps(files)} if files else {})


def check_secrets_are_files(job: Job, who: str) -> None:
    """Raise LonghaulError where a secret lies elsewhere than in a file, which ``who`` needs."""
    for name, secret in job.spec.secrets.items():
        if secret.file is None:
            raise LonghaulError(f"secrets.{name}: {who} reads secrets from a file on each node")


def call(command: list[str], given: str = "", where: str = "") -> str:
    """What a launcher's program says. where: to launch, if it is not installed here.

    Raises LonghaulError where it is not, or refuses.
    """
    try:
        said = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LonghaulError(f"{command[0]} is not installed here{where}") from error
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise LonghaulError(f"{command[0]}: {told[-1]}") from error
    return said.stdout.strip()


def place(recipe: Recipe, spec: ClusterSpec) -> Job:
    """The recipe on all of the cluster's workers. Raises LonghaulError where it does not fit."""
    document = recipe.absolute()
    document["placement"] |= {
        "workers": spec.workers,
        "launcher": "ray",
        "device": "cuda" if spec.gpus_per_worker else "cpu",
        "threads": spec.cpus_per_worker,
    }
    return Job(parse_recipe(document, f"{recipe.name} on the cluster"), spec)
