"""The container image: what its Dockerfile may say, and what comes of its steps."""

import os
import re
import shutil
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.image_build import Build, Image, Stage, admitted, parse, settings_of, size
from tests.train.runs import ROOT

DOCKERFILE = ROOT / "cluster" / "image" / "Dockerfile"
MIRROR = "http://deb.debian.org"
ARGUMENTS, STAGES = parse(DOCKERFILE)
TARGETS = ("cpu", "cuda")


def line(name: str) -> list[Stage]:
    """A stage and all that it stands on, the lowest first."""
    named = {stage.name: stage for stage in STAGES}
    stage = named[name]
    return [*(line(stage.parent) if stage.parent in named else []), stage]


def said(name: str, word: str) -> list[str]:
    """What a stage, with all that it stands on, says with one instruction."""
    instructions = [each for stage in line(name) for each in stage.instructions]
    return [rest for instruction, rest in instructions if instruction == word]


def test_every_stage_begins_with_one_pinned_image() -> None:
    parents = {stage.parent for stage in STAGES} - {stage.name for stage in STAGES}
    assert parents == {"${BASE}"}
    assert re.fullmatch(r"debian:12\.\d+-slim(@sha256:[0-9a-f]{64})?", ARGUMENTS["BASE"])


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_a_user_that_is_not_root(target: str) -> None:
    # A number: Kubernetes cannot tell from a name whether it is root.
    assert said(target, "USER")[-1] == "1000"
    assert STAGES[[s.name for s in STAGES].index(target)].instructions[-1][0] == "USER"
    assert "install.sh user" in said(target, "RUN")
    assert said(target, "ENTRYPOINT") == [], "KubeRay starts Ray through bash"


@pytest.mark.parametrize("target", TARGETS)
def test_the_label_names_the_version_that_is_built(target: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (labels,) = said(target, "LABEL")
    assert f'image.version="{project["version"]}"' in labels
    assert f'image.licenses="{project["license"]}"' in labels


def test_only_tracked_files_of_the_repository_are_copied() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sources = set()
    for stage in STAGES:
        for word, rest in stage.instructions:
            assert word != "ADD", "ADD fetches and unpacks; COPY says what it does"
            if word == "COPY" and not rest.startswith("--from="):
                sources |= set(rest.split()[:-1])
    assert {"pyproject.toml", "constraints.txt", "models", "pipeline", "cluster"} <= sources
    below = {
        source: [file for file in tracked if f"{file}/".startswith(f"{source}/")]
        for source in sources
    }
    sent = {file for file in tracked if admitted(ROOT / ".dockerignore", file)}
    for source, files in below.items():
        assert sent & set(files), f"COPY {source} finds nothing"
    assert sent <= {file for files in below.values() for file in files}, "sent for nothing"


def test_the_code_of_the_image_is_the_whole_code() -> None:
    for package in ("cluster", "models", "pipeline"):
        for file in (ROOT / package).rglob("*.[ch]pp"):
            assert admitted(ROOT / ".dockerignore", str(file.relative_to(ROOT)))
        for file in (ROOT / package).rglob("*.py"):
            assert admitted(ROOT / ".dockerignore", str(file.relative_to(ROOT)))


@pytest.mark.parametrize(
    "path", ["data/events.parquet", "runs/demo/state.json", ".git/config", ".venv/bin/python",
             "tests/conftest.py", "bucket.env", "models/__pycache__/base.pyc", "wandb/run.log"]
)  # fmt: skip
def test_nothing_else_is_sent_to_the_builder(path: str) -> None:
    assert not admitted(ROOT / ".dockerignore", path)


def test_no_instruction_holds_a_secret_or_a_private_index() -> None:
    for stage in STAGES:
        for word, rest in stage.instructions:
            if word in ("ARG", "ENV"):
                assert not re.search(r"PASSW|SECRET|TOKEN|CREDENTIAL|KEY", rest, re.IGNORECASE)
            for url in re.findall(r"https?://\S+", rest):
                assert re.match(r"https://download\.pytorch\.org/whl/", url), url


def scratch_root(folder: Path) -> Path:
    """The file system of the Debian that the stages begin with."""
    root = folder / "debian"
    command = ["debootstrap", "--variant=minbase", "bookworm", str(root), f"{MIRROR}/debian"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]
    suites = {"bookworm": "debian", "bookworm-updates": "debian"}
    suites |= {"bookworm-security": "debian-security"}
    lines = [f"deb {MIRROR}/{place} {suite} main\n" for suite, place in suites.items()]
    (root / "etc" / "apt" / "sources.list").write_text("".join(lines))
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # an engine writes one
    return root


@pytest.fixture
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The CPU target, built by its own steps in a fresh Debian."""
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    for program in ("debootstrap", "unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    try:
        urllib.request.urlopen(f"{MIRROR}/debian/dists/bookworm/Release", timeout=20).close()
    except OSError as error:
        pytest.skip(f"no Debian at {MIRROR}: {error}")
    workspace = tmp_path_factory.mktemp("image")
    arguments = {name: os.environ[name] for name in ("TORCH_INDEX_URL",) if name in os.environ}
    try:
        base = scratch_root(workspace)
        build = Build(ROOT, DOCKERFILE, workspace, base, arguments, settings_of(os.environ))
        yield build.target("cpu")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)  # gigabytes


# One test: built for each of them anew, in every process of pytest, it would take the longer.
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_works_for_any_user_and_without_a_network(image: Image) -> None:
    check_it_holds_what_runs_and_nothing_more(image)
    check_the_code_is_not_the_users_to_change(image)
    check_its_commands_are_on_the_path(image)
    check_a_set_is_prepared_and_trained_with_compiled_kernels(image)
    check_any_user_trains_under_ray_as_kuberay_starts_it(image)


def check_it_holds_what_runs_and_nothing_more(image: Image) -> None:
    assert size(image.root) < 2.7e9
    assert not (image.root / "build").exists()
    for cache in ("root/.cache", "var/lib/apt/lists", "var/cache/apt/archives"):
        folder = image.root / cache
        left = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
        assert left == []
    listed = image.run("pip list --format=freeze")
    held = dict(entry.split("==") for entry in listed.split())
    assert held.pop("longhaul") == "0.1.0"
    assert {"torch", "ray", "deepspeed", "obstore"} <= held.keys()
    assert not held.keys() & {"pytest", "mypy", "moto"}
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    for name, version in held.items():
        version = version.partition("+")[0]  # of torch: for which device
        assert f"{name}=={version}".lower().replace("_", "-") in lines


def check_the_code_is_not_the_users_to_change(image: Image) -> None:
    assert image.run("id --user").strip() == "1000"
    assert image.run("find /opt /usr /etc -writable -not -type l | head").strip() == ""
    kept = image.run("find / -xdev -perm -4000 -type f 2>/dev/null || true").split()
    assert not [path for path in kept if path.startswith(("/opt", "/home"))]


def check_its_commands_are_on_the_path(image: Image) -> None:
    assert "lrurec" in image.run("longhaul models")
    assert "version 2.60" in image.run("ray --version")
    assert "GNU Wget" in image.run("wget --version")


def check_a_set_is_prepared_and_trained_with_compiled_kernels(image: Image) -> None:
    bring_recipe(image, {"placement": {"workers": 1, "launcher": "alone"}})
    image.run(
        "longhaul synth demo/log --users 200 --items 100 --events 4000 &&"
        " longhaul prepare demo/log/events.parquet --output demo/data --timestamp timestamp"
    )
    image.run("longhaul train /tmp/recipe.yaml")
    assert "done" in image.run("cat runs/image/state.json")
    kernels = image.root / "home" / "longhaul" / ".cache" / "torch_extensions"
    assert len(list(kernels.rglob("kernels-*.so"))) == 2  # of synth, and of the models


def check_any_user_trains_under_ray_as_kuberay_starts_it(image: Image) -> None:
    placement = {"workers": 2, "launcher": "ray", "threads": 1}
    bring_recipe(image, {"placement": placement, "runs": "/tmp/runs", "name": "ray"})
    # As a kubelet, asked until it answers; the test's timeout is the patience.
    probes = [
        f"until wget --timeout 10 --quiet --output-document - http://localhost:{port}/api/{path}"
        " | grep --quiet success; do sleep 1; done"
        for port, path in ((52365, "local_raylet_healthz"), (8265, "gcs_healthz"))
    ]
    image.run(
        "ulimit -n 65536; ray start --head --num-cpus=2 --dashboard-host=0.0.0.0"
        " --dashboard-agent-listen-port=52365 --object-store-memory=100000000"
        f" && {' && '.join(probes)}"
        " && ray job submit --address http://localhost:8265 --"
        " python -m pipeline train /tmp/recipe.yaml",
        user="12345:0",
    )
    assert "done" in image.run("cat /tmp/runs/ray/state.json", user="12345:0")


def bring_recipe(image: Image, changes: dict[str, object]) -> None:
    document = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    document |= {"name": "image", "runs": "/home/longhaul/runs"} | changes
    document["data"] |= {"path": "/home/longhaul/demo/data", "lane_tokens": 256}
    document["train"] |= {"steps": 4, "validation": None, "checkpoint_every": 4}
    (image.root / "tmp" / "recipe.yaml").write_text(yaml.safe_dump(document))
