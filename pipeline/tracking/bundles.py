"""What a run was exported to, in the W&B run of the training."""

import sys

from pipeline.export.bundle import Bundle
from pipeline.tracking.wandb_run import WandbRun
from pipeline.train.run import load_config, read_state


def track_bundle(run_url: str, bundle: Bundle) -> None:
    """Log the bundle as an artifact of the run, by reference, where the run is tracked."""
    recipe = load_config(run_url)
    if recipe.tracking.wandb == "disabled":
        return
    stands = read_state(recipe.run_url)
    if stands is not None and stands.state == "running":
        # Two processes that write one W&B run at once overwrite each other.
        print(
            f"warning: run {recipe.name} is still training: W&B is told of no bundle",
            file=sys.stderr,
        )
        return
    config = bundle.config
    run = WandbRun(recipe, attempt=None, facts={})
    run.add_bundle(
        bundle.url,
        {
            "step": config.step,
            "model_hash": config.model_hash,
            "recipe_hash": config.recipe_hash,
            "data": config.data,
            "dtype": config.dtype,
        },
    )
    run.close("done")
