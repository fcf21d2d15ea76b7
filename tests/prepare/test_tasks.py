"""Tasks in threads: all of them once, few results at a time, the first failure stops the rest."""

import threading
import weakref
from functools import partial

import pytest

from pipeline.prepare.tasks import Advance, run_tasks


class Result:
    """Something that can be seen to go."""


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_all_tasks_run_once_and_no_more_than_a_few_results_are_held(workers: int) -> None:
    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    most = 0

    def task(advance: Advance) -> Result:
        result = Result()
        alive.add(result)
        advance(2)
        return result

    told: list[int] = []
    names = []
    for name, _ in run_tasks({str(n): task for n in range(50)}, workers, told.append):
        names.append(name)
        most = max(most, len(alive))
    assert sorted(names, key=int) == [str(n) for n in range(50)]
    assert sum(told) == 100
    assert most <= 2 * workers + 2


def test_the_first_failure_stops_those_that_were_handed_out_and_no_others_begin() -> None:
    begun: list[int] = []
    others_run = threading.Event()

    def failing(advance: Advance) -> None:
        others_run.wait()
        raise ValueError("task 0")

    def endless(number: int, advance: Advance) -> None:
        begun.append(number)
        others_run.set()
        while True:
            advance(1)

    tasks = {"0": failing} | {str(n): partial(endless, n) for n in range(1, 100)}
    with pytest.raises(ValueError, match="task 0"):
        list(run_tasks(tasks, 2, lambda count: None))
    assert set(begun) <= {1, 2, 3}  # at most those that were handed out by then
