"""The process around a command: how it starts, what a mistake looks like, how it leaves."""

import atexit
import contextlib
import importlib.util
import os
import sys
from pathlib import Path

from cluster import commands
from pipeline import model_commands, recommend_commands, run_commands, serve_commands
from pipeline.cli import app
from pipeline.errors import LonghaulError
from pipeline.secrets import read_secrets

model_commands.add_to(app)
recommend_commands.add_to(app)
run_commands.add_to(app)
serve_commands.add_to(app)
commands.add_to(app)


def main() -> None:
    """Run the command of this process, then leave with its exit code.

    Exit functions run, but the interpreter is not torn down: gloo's threads outlive their process
    group, and one that drops its last tensor into a half-dead interpreter aborts the process, and
    with it a whole torchrun job that had succeeded.
    """
    code = run_command()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run_command() -> int:
    """Run the command in ``sys.argv``; its exit code. A mistake becomes one line and code 1."""
    try:
        _check_packages()
        read_secrets()
        app()
    except SystemExit as ended:  # typer's way to return
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except LonghaulError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _check_packages() -> None:
    """A folder called models in the user's directory must not win over ours without a word."""
    home = Path(__file__).resolve().parents[1]
    spec = importlib.util.find_spec("models")  # found, not imported: that would load torch
    found = Path(str(spec and spec.origin)).resolve()
    if home not in found.parents:
        raise LonghaulError(
            f"Python imported a foreign package called models from {found.parent}; longhaul's is "
            f"in {home / 'models'}: run from another folder, or rename that package"
        )
