"""Secrets by reference: environment variables whose values lie in files on each node.

``LONGHAUL_SECRET_FILES`` names them as JSON, {"WANDB_API_KEY": "/run/secrets/wandb"}; a process
reads them when it starts, so no job, log or configuration ever holds a value.
"""

import json
import os
from pathlib import Path

from pipeline.errors import LonghaulError

FILES = "LONGHAUL_SECRET_FILES"
_WORDS = ("CREDENTIAL", "KEY", "PASSWORD", "SECRET", "TOKEN")


def looks_secret(name: str) -> bool:
    """Whether an environment variable is called as secrets are."""
    return any(word in name.upper() for word in _WORDS)


def read_secrets() -> None:
    """Put the values into this process's environment. Raises LonghaulError where one is missing."""
    for name, path in json.loads(os.environ.get(FILES, "{}")).items():
        try:
            os.environ[name] = Path(path).read_text().strip()
        except OSError as error:
            raise LonghaulError(
                f"secret {name} should be in {path} on this node, and cannot be read: "
                f"{error.strerror}"
            ) from error
