"""The first stage: raw event logs become history shards with an index and a manifest.

In the order of the data: ``inputs`` finds the files and ``sources`` their columns, ``formats``
reads them (``delimited``, ``json_lines``) in ``batch``es, ``keys`` and ``values`` type the columns,
``bad`` keeps apart what cannot be read, ``read`` gives typed ``events``; ``deal`` deals them to
partitions by user, through ``spill``, and ``sort`` makes each partition a run (``order``,
``runs``), both driven by an ``engine``: ``embedded`` or ``ray_engine``; ``vocabulary``, ``filters``
and ``split`` decide what is kept and for what; ``shards`` takes the histories of each shard out of
the runs, ``layout`` deals them to members, ``write`` writes them. ``run`` puts it together, with
``tasks`` and the records of ``work``; ``card`` says what came out. ``synth`` makes a log whose best
possible model is known.
"""

from typing import TYPE_CHECKING

from pipeline.prepare.options import PrepareOptions

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.prepare.tasks import Progress

__all__ = ["PrepareOptions", "prepare"]


def prepare(options: PrepareOptions, progress: "Progress | None" = None) -> "Manifest":
    """Write the data set that ``options`` describes and return its manifest.

    ``progress`` is called as ``progress(stage, done, total)``. Raises LonghaulError, in one line,
    for anything wrong with the input or the output; then no data set exists at the output.
    """
    # Only here, so that the command line can show its help without the readers and writers.
    from pipeline.prepare.run import run

    return run(options, progress)
