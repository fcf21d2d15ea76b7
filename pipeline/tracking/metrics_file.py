"""The metrics of an attempt as a file in the run's folder."""

import json
import time
from typing import Any

from pipeline import storage


class MetricsFile:
    """One attempt's metrics as JSON lines.

    Object stores cannot append, so the file is rewritten whole: every few seconds, or more seldom
    where that would take more than a hundredth of the time, and when the run ends. What a crash
    loses is the last seconds of logging, never a checkpoint.
    """

    def __init__(self, url: str, every_seconds: float = 2.0) -> None:
        self._url = url
        self._every = every_seconds
        self._lines: list[str] = []
        self._due = 0.0

    def log(self, record: dict[str, Any]) -> None:
        """Append one record; its time is added as ``time`` (seconds since 1970)."""
        self._lines.append(json.dumps({**record, "time": round(time.time(), 3)}))
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Make everything logged so far visible."""
        began = time.monotonic()
        storage.write_bytes(self._url, "".join(f"{line}\n" for line in self._lines).encode())
        ended = time.monotonic()
        self._due = ended + max(self._every, 100 * (ended - began))
