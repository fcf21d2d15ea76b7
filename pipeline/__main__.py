"""``python -m pipeline``: the command line without its installed script, as torchrun wants it."""

from pipeline.process import main

main()
