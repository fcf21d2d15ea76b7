"""What a packed batch tells of its segments."""

import pytest

from tests.models.test_models import packed


@pytest.mark.parametrize("lengths", [[1], [3, 0, 2], [0, 0, 4], [1, 1, 1]])
def test_positions_and_starts(lengths: list[int]) -> None:
    batch = packed([[9] * length for length in lengths])
    places = [place for length in lengths for place in range(length)]
    assert batch.positions().tolist() == places
    assert batch.starts().tolist() == [place == 0 for place in places]
