"""Which loss a recipe minimises (its ``train.loss``)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LossConfig(BaseModel):
    """The loss, and the negatives of those that have them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["full_softmax", "sampled_softmax", "gbce"] = Field(
        "full_softmax",
        description="full_softmax: over the whole catalogue; sampled_softmax: an estimate of it "
        "from negatives; gbce: gSASRec's binary cross-entropy, with uniform negatives",
    )
    uniform: int = Field(0, ge=0, description="negatives drawn from the catalogue, a block")
    popularity: int = Field(
        0, ge=0, description="sampled_softmax: negatives drawn by their training events, a block"
    )
    batch: int = Field(
        0, ge=0, description="sampled_softmax: negatives drawn from the micro-batch's targets"
    )
    block_tokens: int | None = Field(
        None, ge=1, description="tokens that share their negatives; null: a whole micro-batch"
    )
    t: float | None = Field(
        None,
        ge=0,
        le=1,
        description="gbce: 0 is plain binary cross-entropy, 1 calibrates scores to probabilities",
    )

    @property
    def negatives(self) -> int:
        """Drawn a block."""
        return self.uniform + self.popularity + self.batch

    @property
    def needs_popularity(self) -> bool:
        """Whether the loss draws by the items' training events."""
        return self.popularity > 0

    @model_validator(mode="after")
    def _fits(self) -> "LossConfig":
        if self.name == "full_softmax" and (self.negatives or self.block_tokens):
            raise ValueError("full_softmax has no negatives: take name sampled_softmax, or gbce")
        if self.name == "sampled_softmax" and not self.uniform + self.popularity:
            raise ValueError(
                "sampled_softmax needs uniform or popularity negatives"
                + (
                    ": those of the batch alone never reach most of the catalogue"
                    * (self.batch > 0)
                )
            )
        if self.name == "gbce" and (not self.uniform or self.popularity or self.batch):
            raise ValueError("gbce needs uniform negatives, and takes no others")
        if (self.t is not None) != (self.name == "gbce"):
            raise ValueError("t goes with gbce: give both or neither")
        return self
