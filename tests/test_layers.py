"""Who may import whom: models below pipeline below cluster, and Ray only where it is wanted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden", "spared"),
    [
        ("models", {"pipeline", "cluster", "ray", "deepspeed"}, set()),
        # The command line starts the Ray adapters when asked to; the process takes up the commands
        # of the cluster; preparation has an engine for Ray.
        (
            "pipeline",
            {"cluster", "ray"},
            {"cli.py", "process.py", "recommend_commands.py", "ray_engine.py"},
        ),
    ],
)
def test_layers(package: str, forbidden: set[str], spared: set[str]) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path.name not in spared]
    assert len(files) > 5
    broken = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := set(imports(path)) & forbidden)
    }
    assert not broken
