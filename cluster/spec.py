"""The cluster that runs are launched on: nodes, workers, image, queue, time, environment, secrets.

One specification serves every launcher; what only one of them knows stands in a part of its own, so
does what only ``longhaul plan`` asks for. It never holds a secret: it says where one lies.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cluster.hardware import HardwarePart
from pipeline.config import read_yaml
from pipeline.duration import parse_duration
from pipeline.errors import LonghaulError
from pipeline.mistakes import tell
from pipeline.secrets import looks_secret

SECONDS = 10**9  # nanoseconds


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _duration(text: str) -> str:
    if not parse_duration(text):
        raise ValueError(f"{text!r} is no duration: write it as 90m, 12h or 2d")
    return text


Duration = Annotated[str, AfterValidator(_duration)]


def seconds(duration: str) -> int:
    """Whole seconds of a duration that was checked."""
    return (parse_duration(duration) or 0) // SECONDS


class Secret(_Part):
    """Where the value of an environment variable lies: in one of the two."""

    file: str | None = Field(None, description="path of a file on every node, its content")
    kubernetes: str | None = Field(
        None, pattern=r"^[^/]+/[^/]+$", description="name of a Kubernetes Secret, slash, its key"
    )

    @model_validator(mode="after")
    def _one(self) -> "Secret":
        if (self.file is None) == (self.kubernetes is None):
            raise ValueError("a secret has either a file or a kubernetes reference")
        if self.file is not None and not PurePosixPath(self.file).is_absolute():
            raise ValueError(f"file {self.file!r} is not an absolute path")
        return self


class RayPart(_Part):
    """A Ray cluster that is already there."""

    address: str = Field(
        "http://127.0.0.1:8265", description="of the cluster's dashboard, which takes jobs"
    )
    working_dir: str | None = Field(
        ".",
        description="checkout whose code the job runs, without data and environments; null: the "
        "nodes have longhaul installed",
    )


class SlurmPart(_Part):
    """What only SLURM knows."""

    account: str | None = None
    constraint: str | None = Field(None, description="features that the nodes must have")
    setup: list[str] = Field(
        [], description="shell lines on each node before anything else, as module load cuda"
    )
    shared_nodes: bool = Field(
        False, description="others may use the nodes too: take ports that follow from the job"
    )
    warn_before: Duration = Field(
        "5m", description="before the time limit, to save and be requeued"
    )


class Toleration(_Part):
    """A taint of nodes that the pods put up with."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class KubernetesPart(_Part):
    """What only Kubernetes knows."""

    namespace: str = "default"
    service_account: str | None = None
    image_pull_secrets: list[str] = []
    node_selector: dict[str, str] = Field({}, description="of the workers' pods")
    tolerations: list[Toleration] = Field([], description="of the workers' pods")
    volumes: dict[str, str] = Field({}, description="path in the pods: PersistentVolumeClaim")
    gpu_resource: str = "nvidia.com/gpu"
    head_cpus: PositiveInt = Field(2, description="of the pod that runs Ray's head and the driver")
    head_memory: ByteSize = ByteSize(8 << 30)
    shared_memory: ByteSize = Field(ByteSize(8 << 30), description="of /dev/shm in each pod")
    keep_after: Duration = Field("1h", description="the ended job and its logs stay so long")


class ClusterSpec(_Part):
    """Everything a launcher needs beside the recipe."""

    schema_version: Literal[1] = 1
    nodes: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, description="machines; [least, most]: as many as there are room for, coming and going"
    )
    workers_per_node: PositiveInt = 1
    gpus_per_worker: NonNegativeInt = 0
    cpus_per_worker: PositiveInt = 1
    memory: ByteSize | None = Field(None, description="of a node, as 64GiB")
    python: str = Field("python", description="on every node, with longhaul's dependencies")
    image: str | None = Field(None, description="container image; Kubernetes needs one")
    queue: str | None = Field(None, description="SLURM partition, or Kueue queue")
    time_limit: Duration | None = None
    grace: Duration = Field("2m", description="for a checkpoint, when a node is taken away")
    retries: NonNegativeInt = Field(
        3, description="how often the launcher starts the run anew after it was lost or preempted"
    )
    env: dict[str, str] = {}
    secrets: dict[str, Secret] = Field({}, description="environment variable: where it lies")
    price_per_hour: PositiveFloat | None = Field(None, description="of a node, for longhaul runs")
    hardware: HardwarePart = HardwarePart()
    ray: RayPart = RayPart()
    slurm: SlurmPart = SlurmPart()
    kubernetes: KubernetesPart = KubernetesPart()

    @model_validator(mode="after")
    def _fits_together(self) -> "ClusterSpec":
        if self.least_nodes > self.most_nodes:
            raise ValueError(
                f"nodes: the least, {self.least_nodes}, exceed the most, {self.most_nodes}"
            )
        for name in sorted(self.env.keys() & self.secrets.keys()):
            raise ValueError(f"{name} is both in env and in secrets")
        for name in sorted(self.env):
            if looks_secret(name):
                raise ValueError(
                    f"env.{name} looks like a secret, and env is written into jobs and logs: "
                    f"say in secrets.{name} where it lies"
                )
        return self

    @property
    def least_nodes(self) -> int:
        """Fewer than these the run does not start with."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes[0]

    @property
    def most_nodes(self) -> int:
        """More than these it never has."""
        return self.nodes if isinstance(self.nodes, int) else self.nodes[1]

    @property
    def cpus_per_node(self) -> int:
        """Of all workers of a node."""
        return self.workers_per_node * self.cpus_per_worker

    @property
    def gpus_per_node(self) -> int:
        """Of all workers of a node."""
        return self.workers_per_node * self.gpus_per_worker

    @property
    def workers(self) -> int | list[int]:
        """For ``placement.workers``."""
        if isinstance(self.nodes, int):
            return self.nodes * self.workers_per_node
        return [n * self.workers_per_node for n in self.nodes]


def load_spec(url: str) -> ClusterSpec:
    """Read a specification. Raises LonghaulError naming the key and the nearest valid name."""
    document = read_yaml(url)
    try:
        return ClusterSpec.model_validate(document or {})
    except ValidationError as error:
        raise LonghaulError(f"{url}: {tell(error, ClusterSpec, document)}") from error
