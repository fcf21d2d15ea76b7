#!/usr/bin/env bash
# The steps of the Dockerfile beside it, as root in a folder with the files they name. They need no
# container engine, so tests/cluster/test_image.py runs them without one.
#
#   install.sh system PACKAGE...   packages of Debian
#   install.sh user                who the container runs as
#   install.sh packages            /opt/longhaul: an environment with all that longhaul depends on
#   install.sh longhaul            longhaul itself, into that environment
#
# pip reads PIP_INDEX_URL, for torch in favour of it TORCH_INDEX_URL: that decides for which device
# torch is built.
set -euo pipefail

environment=/opt/longhaul

system() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet --quiet
    apt-get install --quiet --quiet --yes --no-install-recommends "$@"
    apt-get clean
    rm -rf /var/lib/apt/lists/*
}

user() {
    useradd --uid 1000 --create-home longhaul
    # Kubernetes may run the container as any user, whose caches need a place as well.
    chmod 1777 /home/longhaul
}

packages() {
    python3 -m venv "$environment"
    # The pip of Debian cannot pin what others are built with.
    install pip setuptools
    # Alone, so that nothing but torch ever comes from its index.
    (
        export PIP_INDEX_URL="${TORCH_INDEX_URL:-${PIP_INDEX_URL:-}}"
        [ -n "$PIP_INDEX_URL" ] || unset PIP_INDEX_URL
        install --no-deps torch
    )
    "$environment/bin/python" - >requirements.txt <<'END'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], *project["optional-dependencies"]["obstore"], sep="\n")
END
    install --requirement requirements.txt
}

longhaul() {
    install --no-deps .
}

# pip install, nothing kept, everything at the version that the tests pass with.
install() {
    PIP_BUILD_CONSTRAINT=constraints.txt "$environment/bin/pip" install --quiet --no-cache-dir \
        --disable-pip-version-check --root-user-action=ignore --constraint constraints.txt "$@"
}

"$@"
