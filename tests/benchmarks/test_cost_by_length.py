"""From which length on a model is said to be quicker than SASRec."""

from benchmarks.cost_by_length import LENGTHS, TORCH, wins


def _times(*microseconds: float) -> dict[int, dict[str, float]]:
    return {
        length: {"microseconds": value} for length, value in zip(LENGTHS, microseconds, strict=True)
    }


def test_a_win_is_one_at_all_longer_lengths_too() -> None:
    told = wins(
        {
            "sasrec": _times(5, 5, 5, 5, 7, 9, 12, 20),
            TORCH: _times(6, 6, 6, 9, 12, 20, 30, 60),
            "lrurec": _times(4, 7, 7, 7, 7, 7, 7, 7),  # quicker at 50, but not at 100
            "bert4rec": _times(4, 4, 4, 4, 4, 4, 4, 90),
            "hydrarec": _times(1, 1, 1, 1, 1, 1, 1, 1),
        }
    )
    assert told == [
        f"- lrurec: than sasrec from 2000 on, than {TORCH} from 500 on",
        f"- bert4rec: than sasrec at no length, than {TORCH} at no length",
        f"- hydrarec: than sasrec from 50 on, than {TORCH} from 50 on",
    ]
