"""Contenders in processes of their own train and evaluate when they are told to."""

import argparse
import sys

import pytest

from benchmarks.peers.beside import Contender, add_peers, contest
from tests.conftest import random_histories


def test_ours_and_a_plain_loop_take_turns(tmp_path):
    histories = [[*history, 1, 2, 3] for history in random_histories(60, 40, seed=2)]
    log = tmp_path / "log.txt"
    log.write_text("".join(f"{u} {i}\n" for u, items in enumerate(histories) for i in items))
    parser = argparse.ArgumentParser()
    add_peers(parser)
    given = parser.parse_args(["--log", str(log), "--threads", "1", "--recbole", ""])
    with contest(given) as here:
        assert [pair.name for pair in here.pairs] == ["lrurec / plain", "sasrec / plain"]
        with here.both(here.pairs[1]) as children:
            for child in children:
                assert 0 <= child.evaluate().found["recall"] <= 1
                one = child.train(0)
                assert one.found["updates"] == 1
                # All items of a user but the first and the two that are held out.
                assert one.found["targets"] == sum(len(history) - 3 for history in histories)
                assert one.memory > 50 * 2**20
                assert child.train(0.5).found["seconds"] >= 0.5


def test_a_child_that_fails_is_told_of_in_its_own_words(tmp_path):
    child = Contender(sys.executable, "published", {"threads": 1, "histories": "no"}, tmp_path)
    with pytest.raises(RuntimeError, match="No such file or directory: 'no'"):
        child.evaluate()
    child.close()
