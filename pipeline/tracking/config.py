"""The recipe's settings of tracking."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Mode = Literal["disabled", "offline", "online"]


class TrackingConfig(BaseModel):
    """Weights & Biases; the run's own metrics file is always written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wandb: Mode = Field(
        "disabled", description="offline: kept in the run's folder, for `wandb sync` later"
    )
    project: str = "longhaul"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
