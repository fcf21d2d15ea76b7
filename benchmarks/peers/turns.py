"""A contender trains while it is told to: the child's half, in a peer's environment.

Commands come as lines of JSON on the standard input, and every one is answered by one. What the
peer prints itself goes to the standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Turns:
    """Called between updates; holds the training up until it is this contender's turn.

    evaluate: Recall@10 of the validation items as the model stands, of all users.
    """

    def __init__(self, evaluate: Callable[[], float]) -> None:
        self._evaluate = evaluate
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._training = False
        self._seconds = self._began = self._cpu = 0.0
        self._targets = self._updates = 0

    def trained(self, targets: int) -> None:
        """After an update with so many targets; with none, before the first."""
        now = time.perf_counter()
        if self._training:
            self._targets += targets
            self._updates += targets > 0
            if now - self._began < self._seconds:
                return
            self._training = False
            self._answer(
                targets=self._targets,
                updates=self._updates,
                seconds=now - self._began,
                cpu=time.process_time() - self._cpu,
            )
        while not self._training:
            line = sys.stdin.readline()
            if not line:
                os._exit(0)  # a trainer's threads and hooks have nothing left to do
            command = json.loads(line)
            if command["do"] == "evaluate":
                began = time.perf_counter()
                recall = self._evaluate()
                self._answer(recall=recall, seconds=time.perf_counter() - began)
            else:
                self._training = True
                self._seconds = command["seconds"]
                self._targets = self._updates = 0
                self._cpu, self._began = time.process_time(), time.perf_counter()

    def _answer(self, **found: Any) -> None:
        self._answers.write(json.dumps(found) + "\n")
        self._answers.flush()
