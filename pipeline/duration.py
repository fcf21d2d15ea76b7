"""Durations as people write them: 30m, 12h, 7d."""

import re

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
    "w": 604800 * 10**9,
}


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a duration such as ``30m`` or ``7d``; None where ``text`` is none."""
    match = re.fullmatch(r"(\d+)(ns|us|ms|s|m|h|d|w)", text.strip())
    return int(match[1]) * _NANOSECONDS[match[2]] if match else None
