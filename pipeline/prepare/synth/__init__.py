"""A synthetic event log whose true next-item distribution is known, of any size.

A model can then be compared with the best that any model could do, and the whole chain can be
loaded with as many users, items and events as a real log has. The next item of a history is

    markov * one of a few successors of the last item
    + topical * an item of a topic of the past: one of the last ``memory`` events is drawn, with
      weight ``decay ** age``, and an item of its topic by popularity within the topic
    + the rest * an item by popularity (a power law)

and the first item of all is drawn by popularity. All of it depends on the observed history alone,
so ``Truth.next_item_distribution`` is exact. Items already seen are not excluded: they may occur
again, here and in the truth.

In the order of the data: ``options`` says what is asked for, ``process`` holds the tables that
items are drawn from, ``users`` deals events and time to users, ``draw`` walks through time, slice
by slice, with all users mixed (``draw.cpp``, or ``reference`` where there is no compiler: the same
log), ``files`` writes Parquet. ``truth`` is the process as an evaluation asks for it.

What is drawn is a function of (seed, user, number of the event), with no generator whose state
moves on. So neither threads nor the size of a slice show in the log, and what must be remembered is
a few words a user, the topics of his last events, and one slice.
"""

from collections.abc import Callable

from pipeline.prepare.synth.options import SynthOptions

__all__ = ["SynthOptions", "generate"]


def generate(
    options: SynthOptions, url: str, progress: Callable[[int], None] | None = None
) -> None:
    """Write the log that ``options`` describe below ``url``; see ``files.generate``."""
    # Only here, so that the command line can show its help without the tables and Parquet.
    from pipeline.prepare.synth import files

    files.generate(options, url, progress)
