"""The model card of a bundle: what it is, how it ranks, how it is used, where it ends."""

from pipeline.evaluate.of_run import Evaluation
from pipeline.export.bundle import STEP, BundleConfig
from pipeline.serve.model import ServedModel

_METRICS = ("hr@10", "ndcg@10", "mrr", "mean_rank")


def card(config: BundleConfig, evaluations: list[Evaluation], served: ServedModel) -> str:
    """Markdown."""
    parameters = sum(p.numel() for p in served.model.parameters())
    lines = [
        f"# {config.run}",
        "",
        f"A sequential recommender: `{config.model['name']}`, {parameters:,} parameters "
        f"({config.dtype}) over {config.catalogue_size:,} items, trained by longhaul "
        f"{config.versions['longhaul']} for {config.step:,} steps.",
        "",
        f"- model hash: `{config.model_hash}`",
        f"- recipe hash: `{config.recipe_hash}`; the recipe is in `config.json`",
        f"- data: `{config.data}` (the data set's fingerprint)",
        f"- commit: {config.versions['commit']}; torch {config.versions['torch']}",
        "",
        "## How it ranks",
        "",
        *_results(evaluations),
        "",
        "## How to use it",
        "",
        "With longhaul's code (torch, safetensors, pydantic and fsspec are enough):",
        "",
        "```python",
        "from longhaul import Recommender",
        "",
        'recommender = Recommender.load("FOLDER OF THIS FILE")',
        'recommender.start({"user": ["item", "another item"]})',
        'recommender.update("user", "a third item")',
        'recommender.top_k("user", 10)',
        "```",
        "",
        *_without_longhaul(config),
        "",
        "## Limits",
        "",
        f"- It knows {config.catalogue_size:,} items and no other; a new one needs a new training.",
        *_window(config, served),
        "- It learned what users did after what was shown to them, and will recommend more of it;",
        "  the metrics above say nothing of what users would have liked instead.",
    ]
    return "\n".join([*lines, ""])


def _results(evaluations: list[Evaluation]) -> list[str]:
    if not evaluations:
        return ["This checkpoint was not evaluated before the export (`longhaul evaluate`)."]
    names = [name for name in _METRICS if name in evaluations[0].result.metrics]
    lines = [
        "| split | seen items | newest events | users | " + " | ".join(names) + " |",
        "| --- | --- | ---: | ---: |" + " ---: |" * len(names),
    ]
    for one in evaluations:
        protocol = one.result.protocol
        numbers = " | ".join(f"{one.result.metrics.get(name, float('nan')):.4f}" for name in names)
        lines.append(
            f"| {protocol.split} | {protocol.seen} | {protocol.max_history} | "
            f"{one.result.users:,} | {numbers} |"
        )
    return [*lines, "", "Full ranking over the whole catalogue; everything is in `metrics.json`."]


def _without_longhaul(config: BundleConfig) -> list[str]:
    if config.step_function is None:
        return [f"There is no `{STEP}`: {config.no_step_function}."]
    bias = f' + weights["{config.bias}"]' if config.bias else ""
    return [
        "With torch and safetensors alone, one event of many users at a time:",
        "",
        "```python",
        "import glob",
        "",
        "import torch",
        "from safetensors.torch import load_file",
        "",
        f'step = torch.export.load("{STEP}").module()',
        'state = load_file("first_state.safetensors")  # of one user: repeat it for many',
        "items = torch.tensor([7])  # ids: entry 6 of items.safetensors is the key of item 7",
        "hidden, state = step(items, state)",
        'files = glob.glob("weights-*.safetensors")',
        "weights = {name: w.float() for file in files for name, w in load_file(file).items()}",
        f'scores = hidden @ weights["{config.table}"].T{bias}  # column 0 is no item',
        "```",
    ]


def _window(config: BundleConfig, served: ServedModel) -> list[str]:
    if not config.causal:
        return [f"- It looks both ways, at the newest {config.window} events, anew at every event."]
    size = f"A state takes {served.bytes_per_user():,} bytes a user"
    if config.window is None:
        return [f"- {size}, however long the history."]
    then = "are refused" if config.serving.past_max_history == "refuse" else "re-encode the newest"
    return [f"- {size} and holds {config.window} events; more {then}."]
