"""The recipe: what a run computes, and where. YAML on disk, typed here, with overrides.

Every part is declared beside the code it steers (the model's settings beside the model, the window
beside the cutting of segments); this module puts them together and tells mistakes in one line.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

import models
from models import ModelConfig, sizes
from models.losses import LossConfig
from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import Protocol
from pipeline.mistakes import nearest, tell
from pipeline.serve.config import ServingConfig
from pipeline.stream.objective import Objective
from pipeline.stream.reader import ReadingConfig
from pipeline.stream.stream import StreamConfig
from pipeline.tracking.config import TrackingConfig
from pipeline.train.table.config import TableConfig

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(StreamConfig):
    """Which data set, in which order and packing."""

    path: str = Field(description="URL of a data set written by `longhaul prepare`")


class OptimizerConfig(_Part):
    """AdamW, its schedule and its clipping."""

    lr: float = Field(1e-3, gt=0, description="highest learning rate")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases and norms")
    clip_norm: float | None = Field(5.0, gt=0, description="global gradient norm at most; or null")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up, down to final_lr at the last step"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise from zero")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the last step")


class ValidationConfig(_Part):
    """When to validate, and what decides which checkpoint is best."""

    every: int = Field(1000, ge=1, description="steps between validations")
    metric: str = Field("ndcg@10", description="name of the metric that decides; higher is better")
    patience: int | None = Field(
        None, ge=1, description="stop after this many validations without a better one; or null"
    )
    users: int | None = Field(
        None, ge=1, description="validate on the first so many users; null for all"
    )


class DivergenceConfig(_Part):
    """What to do when a gradient is not finite, or larger than it should ever be."""

    policy: Literal["stop", "skip"] = Field(
        "stop",
        description="skip: go back to the newest checkpoint and pass over the step; stop: fail",
    )
    gradient_norm: float | None = Field(
        None, gt=0, description="norms before clipping above this count as divergence; or null"
    )
    most: int = Field(3, ge=1, description="steps passed over before the run fails after all")


class TrainConfig(_Part):
    """What is optimised, how exactly, for how long."""

    steps: int = Field(ge=1, description="optimizer steps at most")
    seed: int = Field(0, ge=0, description="of weights, order, masks, dropout and negatives")
    init_from: str | None = Field(
        None,
        description="URL of a run or a bundle whose weights to begin with, items by their keys; "
        "its optimizer's state is not taken over",
    )
    objective: Objective = Objective()
    loss: LossConfig = LossConfig()
    engine: Literal["deepspeed", "torch"] = Field(
        "deepspeed", description="torch: plain replicas, for debugging and single devices"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    offload: Literal["none", "optimizer"] = Field(
        "none", description="optimizer: DeepSpeed keeps masters and moments in the host's memory"
    )
    table: TableConfig = TableConfig()
    precision: Literal["fp32", "bf16", "autocast"] = Field(
        "fp32",
        description="bf16: bf16 weights, fp32 masters and gradient sums; autocast: fp32 weights, "
        "bf16 matrix products",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    validation: ValidationConfig | None = ValidationConfig()
    checkpoint_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest ones kept, beside the best")
    log_every: int = Field(50, ge=1, description="steps between lines of metrics")

    @model_validator(mode="after")
    def _exists(self) -> "TrainConfig":
        if self.engine == "deepspeed" and self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError(
                "zero_stage 0 with precision bf16 does not exist in DeepSpeed with fp32 gradient "
                "sums: take zero_stage 1, or precision autocast"
            )
        if self.offload == "optimizer" and (self.engine == "torch" or self.zero_stage == 0):
            raise ValueError(
                "offload optimizer is DeepSpeed's, from zero_stage 1 on: set engine deepspeed and "
                "a zero_stage, or offload none"
            )
        if self.engine == "torch" and self.precision == "bf16":
            raise ValueError(
                "precision bf16 needs fp32 masters, which engine torch does not keep: "
                "take engine deepspeed, or precision autocast"
            )
        return self


class PlacementConfig(_Part):
    """Where the run runs. Nothing here changes what it computes."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1,
        description="training processes that Ray starts, at most data.lanes; [least, most]: as "
        "many as there is room for, more or fewer as nodes come and go",
    )
    launcher: Literal["auto", "alone", "torchrun", "ray"] = Field(
        "auto",
        description="auto: torchrun inside torchrun, ray for several workers or inside a Ray "
        "cluster, else alone",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is")
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads a worker; null shares the machine's cores out (under Ray: one)",
    )
    max_failures: int = Field(
        3, ge=0, description="restarts by Ray after a worker or node is lost; each resumes"
    )

    @property
    def least_workers(self) -> int:
        """Fewer than these the run does not start with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """More than these it never has."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _ordered(self) -> "PlacementConfig":
        if self.least_workers > self.most_workers:
            raise ValueError(
                f"workers: the least, {self.least_workers}, exceed the most, {self.most_workers}"
            )
        return self


def _model_config(value: Any) -> Any:
    """Pick the settings class by the model's name, so that a wrong key is told by that class."""
    if isinstance(value, ModelConfig):
        return value
    if not isinstance(value, dict) or "name" not in value:
        raise ValueError(f"a model needs a name, one of: {', '.join(models.names())}")
    if value["name"] not in models.names():
        raise ValueError(
            f"no model is called {value['name']!r}{nearest(value['name'], models.names())}"
        )
    value = dict(value)
    size = value.pop("size", None)
    if size is not None:  # settings by another name: what is written out beside it wins
        if size not in sizes.NAMES:
            raise ValueError(f"no size is called {size!r}{nearest(str(size), sizes.NAMES)}")
        value = sizes.settings(value["name"], size) | value
    return models.config_of(value["name"]).model_validate(value)


class Recipe(_Part):
    """Everything a run needs; ``longhaul config RECIPE`` prints it resolved."""

    schema_version: Literal[1] = 1
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run: the same name with the same recipe resumes",
    )
    runs: str = Field("runs", description="URL of the folder that runs are kept in")
    data: DataConfig
    model: Annotated[SerializeAsAny[ModelConfig], BeforeValidator(_model_config)]
    train: TrainConfig
    evaluation: Protocol = Field(
        Protocol(), description="how validation and test rank; the split is set by the command"
    )
    serving: ServingConfig = ServingConfig()
    tracking: TrackingConfig = TrackingConfig()
    reading: ReadingConfig = ReadingConfig()
    placement: PlacementConfig = PlacementConfig()

    @model_validator(mode="after")
    def _workers_have_lanes(self) -> "Recipe":
        workers, lanes = self.placement.most_workers, self.data.lanes
        if workers > lanes:
            raise ValueError(
                f"placement.workers {workers} exceeds data.lanes {lanes}: set data.lanes to the "
                "most workers the run may ever have (it fixes what a step computes)"
            )
        if workers > 1 and self.placement.launcher == "alone":
            raise ValueError(f"placement.launcher alone is one worker, not {workers}")
        return self

    @model_validator(mode="after")
    def _ranks_what_is_held(self) -> "Recipe":
        dealt = self.train.table.home == "sharded" and self.placement.most_workers > 1
        if dealt and self.evaluation.candidates != "all":
            raise ValueError(
                "evaluation.candidates with train.table.home sharded needs one worker: set "
                "evaluation.candidates all"
            )
        return self

    @model_validator(mode="after")
    def _objective_suits(self) -> "Recipe":
        name, allowed = self.train.objective.name, self.model.objectives
        if name not in allowed:
            why = "would see its answers" if name == "next_item" else "sees no later items"
            raise ValueError(
                f"train.objective {name} does not suit model {self.model.name}, which here {why}; "
                f"it can be trained for: {', '.join(allowed)}"
            )
        if name == "cloze" and not self.data.window.bos:
            raise ValueError(
                "train.objective cloze needs data.window.bos true: it trains a user's first event"
            )
        return self

    @model_validator(mode="after")
    def _positions_suffice(self) -> "Recipe":
        limit = getattr(self.model, "max_history", None)
        if limit is not None:
            gap = int(self.train.objective.masks)
            for key, length, tokens in (
                ("data.window.length", self.data.window.length, 0),
                ("evaluation.max_history", self.evaluation.max_history, gap),
            ):
                if length + tokens > limit:
                    asked = f"{key} {length}{' and the item asked for' if tokens else ''}"
                    raise ValueError(f"{asked} exceeds model.max_history {limit}")
        return self

    @property
    def run_url(self) -> str:
        """The folder of the run."""
        return storage.join(storage.absolute(self.runs), self.name)

    def absolute(self) -> dict[str, Any]:
        """The recipe as a document, of which no place depends on the working directory."""
        document = self.model_dump(mode="json")
        document["runs"] = storage.absolute(self.runs)
        document["data"]["path"] = storage.absolute(self.data.path)
        if self.train.init_from is not None:
            document["train"]["init_from"] = storage.absolute(self.train.init_from)
        return document

    def identity(self) -> dict[str, Any]:
        """What the run computes: the recipe without places, reading, serving, logging, retention.

        Engine and ZeRO stage are places too: they decide where state lies, not what it is.
        """
        document = self.absolute()
        for key in ("runs", "placement", "reading", "serving", "tracking", "schema_version"):
            del document[key]
        for key in (
            "engine",
            "zero_stage",
            "offload",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
        ):
            del document["train"][key]
        del document["data"]["path"]  # the data's fingerprint is checked instead
        return document

    def hash(self) -> str:
        """A hash of ``identity``: equal hashes, equal computation on equal data."""
        canonical = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved recipe."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_recipe(url: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at ``url`` and apply ``key=value`` overrides (values are YAML).

    Raises LonghaulError naming the key, where it stands and the nearest valid name.
    """
    where = f"{url} with {' '.join(overrides)}" if overrides else url
    return parse_recipe(read_document(url, overrides), where)


def read_document(url: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe at ``url`` with overrides, before any key is checked."""
    document = read_yaml(url)
    if not isinstance(document, dict):
        raise LonghaulError(f"{url} is no recipe: a mapping of keys to values is expected")
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise LonghaulError(f"override {override!r} is not of the form key=value")
        try:
            assign(document, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise LonghaulError(f"override {override!r}: the value is not valid YAML") from error
    return document


def read_yaml(url: str) -> Any:
    """The YAML document at ``url``."""
    try:
        return yaml.safe_load(storage.read_bytes(storage.absolute(url)))
    except yaml.YAMLError as error:
        raise LonghaulError(f"{url} is not valid YAML: {' '.join(str(error).split())}") from error


def parse_recipe(document: dict[str, Any], where: str) -> Recipe:
    """The recipe in ``document``; ``where`` names its origin in errors."""
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise LonghaulError(f"{where}: {tell(error, Recipe, document)}") from error


def assign(document: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key`` of a recipe."""
    *path, last = key.split(".")
    node = document
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise LonghaulError(f"override {key}: {part} is a value, it has no keys below it")
    node[last] = value
