"""Where a run's metrics go: always to the run's own file, and to Weights & Biases if asked."""
