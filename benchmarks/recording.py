"""Ratios that were recorded before, and which of today's have dropped."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECORDED = Path(__file__).parent / "recorded"
MOST_DROP = 0.2  # of a recorded ratio


@dataclass(frozen=True)
class Compared:
    """A ratio, the better the larger; None where it was not measured, or not recorded."""

    name: str
    recorded: float | None
    found: float | None

    @property
    def dropped(self) -> bool:
        """Whether it is worse by more than a fifth, or no number."""
        if self.recorded is None or self.found is None:
            return False
        return not self.found >= self.recorded * (1 - MOST_DROP)

    def row(self) -> str:
        """Its line of the table."""
        if self.found is None:
            said = "not measured"
        elif self.recorded is None:
            said = "not recorded"
        else:
            said = "**dropped**" if self.dropped else "kept"
        told = ("" if ratio is None else f"{ratio:,.2f}" for ratio in (self.recorded, self.found))
        return f"| {' | '.join([self.name, *told, said])} |"


def compare(found: dict[str, float], recorded: dict[str, float]) -> list[Compared]:
    """Every ratio that is in either, those that were recorded first."""
    names = dict.fromkeys([*recorded, *found])
    return [Compared(name, recorded.get(name), found.get(name)) for name in names]


def recorded_ratios(folder: Path = RECORDED) -> dict[str, float]:
    """Of all files there. ValueError, with its name, for one that is not of `write_json`."""
    ratios: dict[str, float] = {}
    for path, measured in _measured(folder):
        if not all(isinstance(ratio, int | float) for ratio in measured.values()):
            raise ValueError(f"{path}: measured has to be numbers by name; record it again")
        ratios |= measured
    return ratios


def _measured(folder: Path) -> Iterator[tuple[Path, dict[str, float]]]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, dict(json.loads(path.read_text())["measured"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no recorded ratios ({error}); record it again") from None
