"""A stream of bytes in blocks of whole lines."""

from collections.abc import Iterator
from typing import Any

_MARK = b"\xef\xbb\xbf"  # of the byte order


def lines_of(stream: Any, size: int) -> Iterator[bytes]:
    """The stream in blocks of whole lines of about ``size`` bytes, without a byte order mark."""
    rest = stream.read(len(_MARK)).removeprefix(_MARK)
    while content := stream.read(size):
        cut = content.rfind(b"\n") + 1
        if cut:
            yield rest + content[:cut]
            rest = content[cut:]
        else:
            rest += content
    if rest:
        yield rest
