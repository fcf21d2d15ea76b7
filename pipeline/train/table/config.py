"""Where the item table lives, and how a sharded one is updated."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TableConfig(BaseModel):
    """A dense table is a parameter like the others; a sharded one is dealt over the ranks.

    Of the sharded table's optimizers, betas, eps and weight decay are those of train.optimizer:

    - adam: a row is updated, and decays, when it is touched; its two moments and its own count of
      updates stand still in between.
    - dense_adam: every row at every step, as the dense table's AdamW does it.
    - adagrad: on touched rows, by the root of one sum a row: of the mean squares of its gradients
      (a quarter of Adam's memory and less). Decays when touched.
    - sgd: on touched rows, without state. Decays when touched.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Literal["dense", "sharded"] = Field(
        "dense", description="sharded: rows dealt over the ranks, for 10 million items and more"
    )
    optimizer: Literal["adam", "dense_adam", "adagrad", "sgd"] = Field(
        "adam", description="of a sharded table"
    )
    lr_factor: float = Field(
        1.0, gt=0, description="of a sharded table: its learning rate, in those of the trunk"
    )
    storage: Literal["fp32", "bf16"] = Field(
        "fp32", description="of a sharded table's rows; bf16 is rounded at random, up or down"
    )

    @model_validator(mode="after")
    def _belongs(self) -> "TableConfig":
        given = self.model_fields_set - {"home"}
        told = [name for name in given if getattr(self, name) != _DEFAULTS[name]]
        if self.home == "dense" and told:
            raise ValueError(f"{told[0]} is a setting of a sharded table: set home sharded")
        return self


_DEFAULTS = {name: field.default for name, field in TableConfig.model_fields.items()}
