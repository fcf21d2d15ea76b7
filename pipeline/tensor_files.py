"""How much of which tensors goes into one file: encoding takes that in memory twice more."""

from collections.abc import Iterable

FILE_BYTES = 256 << 20  # of tensors in a file, unless one that is not cut has more


def cut(size: int) -> list[range]:
    """The bytes of a tensor of so many, by the parts of it that fit into a file each."""
    return [range(at, min(at + FILE_BYTES, size)) for at in range(0, size, FILE_BYTES)]


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
