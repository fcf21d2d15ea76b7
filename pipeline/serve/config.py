"""The recipe's settings of serving."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """What one event at a time does; training and evaluation do not depend on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    past_max_history: Literal["refuse", "re-encode"] = Field(
        "refuse",
        description="past model.max_history, and where a model looks both ways: an error, or the "
        "newest window encoded anew at every event",
    )
