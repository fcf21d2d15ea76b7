"""Where it runs: the Ray Train adapter; launchers and images later."""
