"""The way of the data, one room a stage: prepare, stream, train, evaluate, recommend."""

import os

# OpenMP reads it once, when torch is loaded, which parts of this package and webdataset do. Threads
# that wait by spinning take the core from whoever they wait for: beside one other busy process
# training ran at a quarter of the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
