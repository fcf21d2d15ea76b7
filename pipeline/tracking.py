"""Where a run's metrics go: always to the run's own file, and to Weights & Biases if asked."""

import json
import os
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import storage
from pipeline.errors import LonghaulError


class TrackingConfig(BaseModel):
    """Weights & Biases; the run's own metrics file is always written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "longhaul"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)


class MetricsFile:
    """One attempt's metrics as JSON lines.

    Object stores cannot append, so the file is rewritten whole: every few seconds, or more seldom
    where that would take more than a hundredth of the time, and when the run ends. What a crash
    loses is the last seconds of logging, never a checkpoint.
    """

    def __init__(self, url: str, every_seconds: float = 2.0) -> None:
        self._url = url
        self._every = every_seconds
        self._lines: list[str] = []
        self._due = 0.0

    def log(self, record: dict[str, Any]) -> None:
        """Append one record; its time is added as ``time`` (seconds since 1970)."""
        self._lines.append(json.dumps({**record, "time": round(time.time(), 3)}))
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Make everything logged so far visible."""
        began = time.monotonic()
        storage.write_bytes(self._url, "".join(f"{line}\n" for line in self._lines).encode())
        ended = time.monotonic()
        self._due = ended + max(self._every, 100 * (ended - began))


class Tracker:
    """The metrics of one attempt: file and, unless disabled, a W&B run.

    W&B counts its own steps anew after every offline restart, so the training step and the tokens
    seen are logged as metrics and made the axes.
    """

    def __init__(
        self, metrics_url: str, config: TrackingConfig, name: str, recipe: dict[str, Any]
    ) -> None:
        self._file = MetricsFile(metrics_url)
        self._wandb: Any = None
        if config.wandb == "disabled":
            return
        import wandb

        try:
            self._wandb = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=config.tags,
                id=name,
                name=name,
                mode=config.wandb,
                resume="allow",
                config=recipe,
                settings=wandb.Settings(silent=True),
                dir=os.environ.get("WANDB_DIR"),
            )
        except wandb.errors.Error as error:
            raise LonghaulError(
                f"W&B refused the run: {str(error).splitlines()[0]}; log in, or set "
                "tracking.wandb to offline or disabled"
            ) from error
        self._wandb.define_metric("step")
        self._wandb.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any]) -> None:
        """Log one record of numbers; ``step`` is the training step it belongs to."""
        self._file.log(record)
        if self._wandb is not None:
            self._wandb.log(record)

    def flush(self) -> None:
        """Make everything logged so far visible in the run's folder."""
        self._file.flush()

    def close(self, failed: bool = False) -> None:
        """End the attempt."""
        self._file.flush()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
