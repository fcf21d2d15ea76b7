"""``python -m pipeline``: the command line without its installed script, as torchrun wants it."""

from pipeline.cli import main

main()
