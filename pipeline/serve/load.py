"""What is served, from a bundle or from a run."""

import warnings
from collections.abc import Callable

import torch

from pipeline.export.bundle import is_bundle, read_bundle
from pipeline.serve.model import ServedModel


def load_served(
    url: str, device: torch.device | str = "cpu", warn: Callable[[str], None] = warnings.warn
) -> ServedModel:
    """The model of a bundle, or of a run's best checkpoint, which needs the run's data set too."""
    if is_bundle(url):
        return read_bundle(url).served(device)
    # A bundle is read without what trains and prepares.
    from pipeline.serve.of_run import served_of
    from pipeline.train.trained import load_trained

    return served_of(load_trained(url, device, warn))
