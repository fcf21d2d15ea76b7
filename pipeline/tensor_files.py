"""How many tensors go into one file: encoding takes a file's tensors in memory twice more."""

from collections.abc import Iterable

FILE_BYTES = 1 << 30  # of tensors in a file, unless one alone has more


def divide(sizes: Iterable[int]) -> list[range]:
    """The places of consecutive tensors of these sizes in bytes, by file."""
    files = [range(0)]
    room = FILE_BYTES
    for place, size in enumerate(sizes):
        if size > room and files[-1]:
            files.append(range(place, place))
            room = FILE_BYTES
        files[-1] = range(files[-1].start, place + 1)
        room -= size
    return files
