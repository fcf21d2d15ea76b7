"""The operations models are built of, on packed batches (tokens back to back, no padding).

One folder an operation: `reference.py` says what it computes in plain torch, `cpu.py` and
`triton.py` are the fast forms, `eager.py` is what runs elsewhere, `__init__.py` picks. Every
operation takes fp32 and bf16 (fast) and fp64 (eager).
"""

from models.ops.activation import bias_gelu_dropout
from models.ops.attention import attention
from models.ops.convolution import causal_convolution
from models.ops.counting import add_health, count_reaching
from models.ops.cutting import Events
from models.ops.dense import linear
from models.ops.drop import dropout
from models.ops.experts import running_softmax_experts
from models.ops.linear_attention import causal_linear_attention
from models.ops.lookup import lookup, row_sums
from models.ops.norm import dropout_add_norm
from models.ops.pooling import segment_softmax, segment_sum, spread
from models.ops.prefix_sum import prefix_sum
from models.ops.product_keys import memory_read, product_key_top
from models.ops.recurrence import diagonal_recurrence
from models.ops.rotary import rotate
from models.ops.sampled import sampled_binary_loss, sampled_softmax_loss
from models.ops.softmax import full_softmax_loss

__all__ = [
    "Events",
    "add_health",
    "attention",
    "bias_gelu_dropout",
    "causal_convolution",
    "causal_linear_attention",
    "count_reaching",
    "diagonal_recurrence",
    "dropout",
    "dropout_add_norm",
    "full_softmax_loss",
    "linear",
    "lookup",
    "memory_read",
    "prefix_sum",
    "product_key_top",
    "rotate",
    "row_sums",
    "running_softmax_experts",
    "sampled_binary_loss",
    "sampled_softmax_loss",
    "segment_softmax",
    "segment_sum",
    "spread",
]
