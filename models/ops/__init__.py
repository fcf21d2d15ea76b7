"""The operations models are built of, on packed batches (tokens back to back, no padding).

One folder an operation: `reference.py` says what it computes in plain torch, `cpu.py` is the fast
form, `__init__.py` picks. Every operation takes fp32 and bf16 (fast) and fp64 (reference form).
"""

from models.ops.activation import bias_gelu_dropout
from models.ops.attention import causal_attention
from models.ops.dense import linear
from models.ops.drop import dropout
from models.ops.norm import dropout_add_norm
from models.ops.recurrence import diagonal_recurrence
from models.ops.softmax import full_softmax_loss

__all__ = [
    "bias_gelu_dropout",
    "causal_attention",
    "diagonal_recurrence",
    "dropout",
    "dropout_add_norm",
    "full_softmax_loss",
    "linear",
]
