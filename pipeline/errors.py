"""What reaches a user: a single line with what, where and what to do."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LonghaulError(Exception):
    """A mistake in the input, the recipe or the surroundings, told in one line.

    The command line prints it as ``error: ...`` and exits with 1. Anything else that escapes is a
    defect of longhaul and keeps its traceback.
    """


class DamagedError(LonghaulError):
    """What was read is not what the manifest, the index or the commit says."""


def warn(message: str) -> None:
    """Tell what is not as it should be and stops nothing."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def first_mistake(error: "ValidationError") -> str:
    """Where a document does not fit its schema, and how: the first place that does not."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
