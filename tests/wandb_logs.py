"""The logs that W&B keeps of offline runs, read back."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


def offline_logs(folder: Path) -> list[list[Record]]:
    """The records of each offline run below ``folder``, in the order they began."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [list(records_in(file.read_bytes())) for file in files]


def records_in(content: bytes) -> Iterator[Record]:
    """The records of a ``.wandb`` file: LevelDB log blocks of 32 KiB behind a 7-byte header."""
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def of_kind(log: list[Record], kind: str) -> list[Any]:
    """What the records of one kind hold, in order."""
    return [getattr(record, kind) for record in log if record.HasField(kind)]
