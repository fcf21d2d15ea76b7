"""The way of the data, one room a stage: prepare, stream, train, evaluate, recommend."""

import os

# OpenMP reads these once, when torch is loaded, which parts of this package and webdataset do. To
# wake a thread takes longer than most waits within a step last: where threads look again for some
# twenty microseconds before they sleep, training is 1.4 times as quick as where they sleep at once.
# Where they look for much longer, they take the core from whoever they wait for: beside one other
# busy process a step took four times as long with ten times the looks, and 1.2 times with these.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
