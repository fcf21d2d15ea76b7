"""What is read off two curves of quality over time, and what the contenders are scored on."""

import numpy as np
import pytest
import torch

from benchmarks.peers.beside import histories_of
from benchmarks.peers.histories import Histories, padded
from benchmarks.peers.hits import recall
from benchmarks.time_to_quality import Reached, best, first_at, row
from tests.conftest import prepare_histories

HISTORIES = Histories(np.array([5, 2, 3, 9, 7, 1, 1]), np.array([0, 4, 7]), 20)


def test_the_best_is_the_first_of_the_highest():
    assert best([(10.0, 0.1), (20.0, 0.3), (30.0, 0.3), (40.0, 0.2)]) == (20.0, 0.3)


def test_the_first_time_at_a_recall():
    curve = [(10.0, 0.1), (20.0, 0.3), (30.0, 0.2)]
    assert first_at(curve, 0.2) == 20.0
    assert first_at(curve, 0.4) is None


def test_a_row_says_who_needed_how_long():
    theirs = [(100.0, 0.05), (200.0, 0.1)]
    told = row(Reached("a / b", [(10.0, 0.02), (20.0, 0.1)], theirs))
    assert told == "| a / b | .1000 | 200 s | 20 s | 10.0 |"
    assert "not in 300 s" in row(Reached("a / b", [(300.0, 0.02)], theirs))


def test_the_last_item_of_a_history_is_the_target(tmp_path):
    HISTORIES.write(tmp_path / "histories.npz")
    read = Histories.read(str(tmp_path / "histories.npz"))
    assert [part.tolist() for part in read.training()] == [[5, 2, 3], [7, 1]]
    assert read.targets().tolist() == [9, 1]
    assert read.catalogue_size == 20
    assert padded(read.training(), 2).tolist() == [[2, 3], [7, 1]]
    assert padded(read.training(), 3).tolist() == [[5, 2, 3], [0, 7, 1]]


def test_recall_leaves_out_the_history_and_padding():
    def low_items_first(items: torch.Tensor) -> torch.Tensor:
        return torch.arange(20.0, -1.0, -1.0).repeat(len(items), 1)

    # Item 13 is the tenth of those that neither are item 0 nor in the first history. The second
    # user's target lies in its own history, which is never recommended.
    histories = Histories(np.array([5, 2, 3, 13, 7, 1, 1]), np.array([0, 4, 7]), 20)
    assert recall(histories, 4, low_items_first) == 0.5
    beyond = Histories(np.array([5, 2, 3, 14, 7, 1, 1]), np.array([0, 4, 7]), 20)
    assert recall(beyond, 4, low_items_first) == 0.0


def test_histories_of_a_data_set_end_with_the_item_of_validation(tmp_path):
    dataset = prepare_histories([[1, 2, 3, 4], [4, 3, 2, 1, 2]], tmp_path)
    found = histories_of(dataset)
    parts = {tuple(part.tolist()) for part in np.split(found.items, found.offsets[1:-1])}
    assert parts == {(1, 2, 3), (4, 3, 2, 1)}
    assert found.catalogue_size == 4


def test_a_user_without_an_item_to_validate_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no item to validate on"):
        histories_of(prepare_histories([[1, 2, 3, 4], [4]], tmp_path))
