"""A job: a recipe placed on a cluster."""

import json
import shlex
from dataclasses import dataclass

from cluster.spec import ClusterSpec
from pipeline import storage
from pipeline.config import Recipe, parse_recipe
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
    def command(self) -> list[str]:
        """What starts or resumes the run, where longhaul is installed or the working directory."""
        recipe = storage.join(self.folder, "recipe.yaml")
        return [self.spec.python, "-m", "pipeline", "train", recipe]

    @property
    def command_line(self) -> str:
        """The command for a shell."""
        return shlex.join(self.command)

    def environment(self) -> dict[str, str]:
        """Variables for every process of the job; of secrets only where they lie."""
        files = {name: held.file for name, held in self.spec.secrets.items() if held.file}
        found = self.spec.env | {LAUNCHED: "1"}
        return found | ({FILES: json.dumps(files)} if files else {})


def place(recipe: Recipe, spec: ClusterSpec) -> Job:
    """The recipe on all of the cluster's workers. Raises LonghaulError where it does not fit."""
    document = recipe.model_dump(mode="json")
    document["runs"] = storage.absolute(recipe.runs)
    document["data"]["path"] = storage.absolute(recipe.data.path)
    document["placement"] |= {
        "workers": spec.workers,
        "launcher": "ray",
        "device": "cuda" if spec.gpus_per_worker else "cpu",
        "threads": spec.cpus_per_worker,
    }
    return Job(parse_recipe(document, f"{recipe.name} on the cluster"), spec)
