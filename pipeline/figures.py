"""What the pictures of reports have in common."""

import io
from collections.abc import Iterable
from typing import Any


def plain(axes: Iterable[Any]) -> None:
    """Two spines, and a faint grid behind what is drawn."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)


def png(figure: Any) -> bytes:
    """The figure as a PNG; it is closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    return buffer.getvalue()
