"""From packed batches to checkpoints: the loop, the engines below it, and the run it belongs to."""
