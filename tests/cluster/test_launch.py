"""What launchers are given: rendered from one specification, refused where it cannot run."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.launch import LAUNCHERS, keep
from cluster.launch.job import Job, place
from cluster.spec import ClusterSpec, load_spec
from pipeline.config import load_recipe
from pipeline.errors import LonghaulError
from tests.train.runs import ROOT

CLUSTERS = ROOT / "configs" / "clusters"
SCHEMA = Path(
    os.environ.get(
        "LONGHAUL_RAYJOB_SCHEMA", ROOT / ".." / "shared" / "schemas" / "rayjob_v1_schema.json"
    )
)
BUCKET = ("runs=s3://bucket/runs", "data.path=s3://bucket/set")


def job(spec: ClusterSpec, *changes: str) -> Job:
    """The demo on a cluster, its runs and data in a bucket."""
    changed = ["data.lanes=64", *BUCKET, *changes]
    return place(load_recipe(str(ROOT / "configs" / "demo.yaml"), changed), spec)


def spec_of(**keys: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(keys)


@pytest.fixture(scope="session")
def rayjob_schema() -> dict[str, Any]:
    """KubeRay's schema of a RayJob, with unknown fields refused as the API server refuses them."""
    if not SCHEMA.exists():
        pytest.skip(f"no schema at {SCHEMA} (set LONGHAUL_RAYJOB_SCHEMA)")
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    schema["properties"]["metadata"] = {"type": "object"}

    def close(node: Any) -> None:
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for inner in node.values():
                close(inner)

    close(schema)
    return schema


def mistakes(schema: dict[str, Any], document: Any) -> list[str]:
    from jsonschema import Draft202012Validator

    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nodes": 3, "queue": "research", "time_limit": "90m"},
        {"nodes": 1, "gpus_per_worker": 0, "kubernetes": {"volumes": {"/shared": "claim"}}},
    ],
)
def test_a_rayjob_fits_the_schema(rayjob_schema: dict[str, Any], changes: dict[str, Any]) -> None:
    written = load_spec(str(CLUSTERS / "kubernetes.yaml")).model_dump(mode="json")
    rendered = LAUNCHERS["kubernetes"].render(job(spec_of(**(written | changes))))
    assert mistakes(rayjob_schema, yaml.safe_load(rendered)) == []
    spoiled = yaml.safe_load(rendered)
    spoiled["spec"]["backofLimit"] = 3
    assert mistakes(rayjob_schema, spoiled), "the schema accepts anything"


def test_a_rayjob_says_what_the_specification_says() -> None:
    spec = load_spec(str(CLUSTERS / "kubernetes.yaml"))
    document = yaml.safe_load(LAUNCHERS["kubernetes"].render(job(spec)))
    cluster = document["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 8]
    assert cluster["enableInTreeAutoscaling"] is True
    assert document["spec"]["activeDeadlineSeconds"] == 2 * 86400
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        values = {entry["name"]: entry for entry in container["env"]}
        drain = int(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])
        assert drain == 180 < pod["terminationGracePeriodSeconds"]
        reference = values["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "wandb", "key": "api-key"}
        assert pod["serviceAccountName"] == "longhaul"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert workers["rayStartParams"] == {"num-cpus": "64", "object-store-memory": str(4 << 30)}
    head, worker = (g["template"]["spec"] for g in (cluster["headGroupSpec"], workers))
    assert worker["nodeSelector"] == spec.kubernetes.node_selector
    assert worker["tolerations"]
    assert not {"nodeSelector", "tolerations"} & set(head), "the head takes a worker's node"


@pytest.mark.parametrize(
    ("launcher", "keys", "changes", "told"),
    [
        ("kubernetes", {}, [], "set image"),
        ("kubernetes", {"image": "i"}, ["name=Not_A_Label"], "cannot be called 'Not_A_Label'"),
        ("kubernetes", {"image": "i", "nodes": [1, 2], "queue": "q"}, [], "Kueue queue admits"),
        ("kubernetes", {"image": "i"}, ["runs=runs"], "in no volume that all pods see"),
        ("kubernetes", {"image": "i", "secrets": {"A": {"file": "/a"}}}, [], "from a Secret"),
        ("slurm", {"nodes": [1, 2]}, [], "nodes is one number"),
        ("slurm", {"secrets": {"A": {"kubernetes": "a/b"}}}, [], "from a file on each node"),
        ("slurm", {"time_limit": "5m"}, [], "warn_before 5m is not before time_limit 5m"),
        ("ray", {"time_limit": "5m"}, [], "a Ray job has no time_limit"),
        ("ray", {"secrets": {"A": {"kubernetes": "a/b"}}}, [], "from a file on each node"),
    ],
)
def test_what_cannot_run_is_refused(
    launcher: str, keys: dict[str, Any], changes: list[str], told: str
) -> None:
    with pytest.raises(LonghaulError, match=told):
        LAUNCHERS[launcher].render(job(spec_of(**keys), *changes))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("node: 2", "unknown key 'node'; did you mean 'nodes'?"),
        ("slurm: {acount: a}", "unknown key 'slurm.acount'; did you mean 'account'?"),
        ("nodes: [3, 2]", "the least, 3, exceed the most, 2"),
        ("time_limit: soon", "'soon' is no duration"),
        ("env: {WANDB_API_KEY: x}", "env.WANDB_API_KEY looks like a secret"),
        ("secrets: {A: {}}", "either a file or a kubernetes reference"),
        ("secrets: {A: {file: here}}", "is not an absolute path"),
        ("{env: {B: x}, secrets: {B: {file: /b}}}", "B is both in env and in secrets"),
    ],
)
def test_a_wrong_specification_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(LonghaulError) as raised:
        load_spec(str(tmp_path / "cluster.yaml"))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_specification_of_the_project_is_rendered(file: Path) -> None:
    launcher = file.stem.split("-")[0]
    assert LAUNCHERS[launcher].render(job(load_spec(str(file))))


def test_the_recipe_is_placed_on_all_workers() -> None:
    spec = spec_of(nodes=[2, 4], workers_per_node=8, gpus_per_worker=1, cpus_per_worker=6)
    placement = job(spec).recipe.placement
    assert placement.workers == (16, 32)
    assert (placement.launcher, placement.device, placement.threads) == ("ray", "cuda", 6)
    with pytest.raises(LonghaulError, match=r"placement\.workers 80 exceeds data\.lanes 64"):
        job(spec_of(nodes=10, workers_per_node=8))


def test_a_batch_script_is_valid_and_says_what_the_specification_says(tmp_path: Path) -> None:
    spec = load_spec(str(CLUSTERS / "slurm.yaml"))
    script = LAUNCHERS["slurm"].render(job(spec, f"runs={tmp_path}"))
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line}
    assert options >= {
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--mem=524288M",
        "--time=720",
        "--signal=B:USR2@600",
        "--requeue",
        "--exclusive",
        "--partition=gpu",
    }
    assert "source /shared/longhaul/.venv/bin/activate" in script


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_no_file_of_a_job_holds_a_secret(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = "planted-secret-value"
    (tmp_path / "secret").write_text(planted)
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_TOKEN"):
        monkeypatch.setenv(name, planted)
    where = (
        {"kubernetes": "wandb/key"} if launcher == "kubernetes" else {"file": f"{tmp_path}/secret"}
    )
    spec = spec_of(
        image="i",
        secrets={"WANDB_API_KEY": where},
        kubernetes={"volumes": {str(tmp_path): "claim"}},
    )
    wanted = job(spec, f"runs={tmp_path}/runs", f"data.path={tmp_path}/set")
    keep(wanted, launcher)
    files = [path for path in Path(wanted.folder).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"recipe.yaml", "cluster.yaml"}
    for path in files:
        assert planted not in path.read_text()
        assert "WANDB_API_KEY" in path.read_text() or path.name == "recipe.yaml"
