"""Metrics reach the run's own file and W&B: its offline log is read back, its server is ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from pipeline import storage, world
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run
from pipeline.export.write import export_run
from pipeline.manifest import Dataset
from pipeline.report.page import report_of
from pipeline.tracking import wandb_run
from pipeline.tracking.bundles import track_bundle
from pipeline.tracking.evaluations import track_evaluations, track_report
from pipeline.tracking.metrics_file import MetricsFile
from pipeline.train import node_load
from pipeline.train.trained import load_trained
from tests.train.runs import recipe, records, train_here
from tests.wandb_logs import of_kind, offline_logs, records_in
from tests.wandb_server import WandbServer


def rows(log: list[Record]) -> list[dict[str, Any]]:
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item}
        for row in of_kind(log, "history")
    ]


def tracked(dataset: Dataset, folder: Path | str, mode: str = "offline", **changes: Any) -> Recipe:
    return recipe(dataset, folder, "tracked", tracking={"wandb": mode, "group": "g"}, **changes)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server that clients of this process and its children find."""
    wandb.teardown()  # settings of an earlier test
    server = WandbServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()
    wandb.teardown()


def test_offline_attempts_are_one_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = tracked(small_set, tmp_path)
    assert train_here(wanted, stop_before=6).state == "preempted"
    assert train_here(wanted).state == "done"
    first, second = offline_logs(tmp_path / "tracked")
    logged = [row for row in [*rows(first), *rows(second)] if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert [row["loss"] for row in logged] == [record["loss"] for record in records(wanted)]
    (begun,), (again,) = of_kind(first, "run")[:1], of_kind(second, "run")[:1]
    assert begun.run_id == again.run_id
    assert (begun.display_name, begun.project, begun.run_group) == ("tracked", "longhaul", "g")
    assert of_kind(first, "preempting")
    assert not of_kind(second, "preempting")
    assert [of_kind(log, "exit")[-1].exit_code for log in (first, second)] == [1, 0]


def test_configuration_axes_and_lineage_are_logged(small_set: Dataset, tmp_path: Path) -> None:
    wanted = tracked(small_set, tmp_path)
    train_here(wanted)
    (log,) = offline_logs(tmp_path / "tracked")
    config = {
        item.key: json.loads(item.value_json)
        for update in [*of_kind(log, "config"), *(run.config for run in of_kind(log, "run"))]
        for item in update.update
    }
    assert config["train"] == wanted.model_dump(mode="json")["train"]
    assert config["world_size"] == 1
    assert "commit" in config["versions"]
    metrics = of_kind(log, "metric")
    assert {(m.glob_name, m.step_metric) for m in metrics if m.glob_name} == {("*", "step")}
    data, checkpoint = of_kind(log, "artifact")
    assert (data.type, data.use_after_commit) == ("dataset", True)
    assert data.manifest.contents[0].ref == f"file://{small_set.url}/manifest.json"
    assert json.loads(data.metadata)["fingerprint"] == small_set.fingerprint
    assert (checkpoint.type, checkpoint.use_after_commit) == ("model", False)
    assert json.loads(checkpoint.metadata)["step"] == 12


def test_evaluations_join_the_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = tracked(small_set, tmp_path)
    train_here(wanted)
    with world.alone("cpu", 1) as here:
        found = list(
            evaluate_run(
                load_trained(wanted.run_url, here.device, print),
                small_set,
                Protocol(max_history=16),
                here,
                baselines=True,
            )
        )
    track_evaluations(wanted, found)
    report = report_of(wanted)
    track_report(wanted, report)
    trained, evaluated, reported = offline_logs(tmp_path / "tracked")
    assert of_kind(trained, "run")[0].run_id == of_kind(evaluated, "run")[0].run_id
    assert of_kind(reported, "run")[0].run_id == of_kind(evaluated, "run")[0].run_id
    table, shown = rows(evaluated)
    kinds = {k.removesuffix("/_type"): v for k, v in table.items() if k.endswith("_type")}
    assert (kinds, table["evaluations/nrows"]) == ({"evaluations": "table-file"}, 4)
    images = {f"pictures/{name}": "image-file" for name in report.pictures}
    for row in (shown, *rows(reported)):
        kinds = {k.removesuffix("/_type"): v for k, v in row.items() if k.endswith("_type")}
        assert kinds == {"page": "html-file", **images}
    summary = {
        "/".join([item.key, *item.nested_key]).strip("/"): item.value_json
        for update in of_kind(evaluated, "summary")
        for item in update.update
    }
    ndcg = found[0].result.metrics["ndcg@10"]
    assert json.loads(summary["test/lrurec/ndcg@10"]) == ndcg
    media = tmp_path / "tracked" / "wandb" / "latest-run" / "files" / "media"
    kept = {image.read_bytes() for image in media.glob("images/**/*.png")}
    assert kept == set(report.pictures.values())
    (page,) = media.glob("html/*.html")
    assert "How it ranks" in page.read_text()


def test_a_bundle_is_an_artifact_of_its_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = tracked(small_set, tmp_path)
    train_here(wanted)
    bundle = export_run(wanted.run_url, str(tmp_path / "bundle"))
    track_bundle(wanted.run_url, bundle)
    trained, exported = offline_logs(tmp_path / "tracked")
    assert of_kind(trained, "run")[0].run_id == of_kind(exported, "run")[0].run_id
    (artifact,) = of_kind(exported, "artifact")
    assert (artifact.type, artifact.use_after_commit) == ("bundle", False)
    named = {content.ref for content in artifact.manifest.contents}
    assert named == {f"file://{path}" for path in (tmp_path / "bundle").iterdir()}
    facts = json.loads(artifact.metadata)
    assert (facts["step"], facts["model_hash"]) == (12, bundle.config.model_hash)
    assert facts["data"] == small_set.fingerprint


def test_an_untracked_run_is_exported_without_wandb(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, "alone")
    train_here(wanted)
    track_bundle(wanted.run_url, export_run(wanted.run_url, str(tmp_path / "bundle")))
    assert not (tmp_path / "alone" / "wandb").exists()


def test_runs_in_buckets_keep_the_offline_log_there(small_set: Dataset, bucket: str) -> None:
    wanted = tracked(small_set, bucket)
    train_here(wanted)
    (name,) = [n for n in storage.files_below(wanted.run_url) if n.endswith(".wandb")]
    log = list(records_in(storage.read_bytes(f"{wanted.run_url}/{name}")))
    assert [row["step"] for row in rows(log) if "loss" in row] == list(range(1, 13))


def test_online_attempts_are_one_run(
    small_set: Dataset, tmp_path: Path, server: WandbServer
) -> None:
    wanted = tracked(small_set, tmp_path, "online")
    train_here(wanted, stop_before=6)
    train_here(wanted)
    ((_, history),) = server.histories.items()
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 13))
    assert "UseArtifact" in dict(server.calls)
    types = [
        given["input"]["artifactTypeName"] for n, given in server.calls if n == "CreateArtifact"
    ]
    assert types == ["dataset", "model"] * 2


def test_a_server_that_never_answers_costs_the_start(
    small_set: Dataset,
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_run, "_START_SECONDS", 2.0)
    server.go_away()
    assert train_here(tracked(small_set, tmp_path, "online")).state == "done"
    assert "this attempt is kept offline" in capfd.readouterr().err
    (log,) = offline_logs(tmp_path / "tracked")
    assert [row["step"] for row in rows(log) if "loss" in row] == list(range(1, 13))


def test_a_server_that_goes_away_costs_the_end(
    small_set: Dataset,
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_run, "_LINEAGE_SECONDS", 2.0)
    monkeypatch.setattr(wandb_run, "_END_SECONDS", 2.0)
    monkeypatch.setattr(wandb_run, "_SPARE_SECONDS", 60.0)
    begin = wandb_run.WandbRun._begin

    def begin_then_lose(*arguments: Any) -> Any:
        run = begin(*arguments)
        server.go_away()
        return run

    monkeypatch.setattr(wandb_run.WandbRun, "_begin", begin_then_lose)
    assert train_here(tracked(small_set, tmp_path, "online")).state == "done"
    assert "send what is missing with `wandb sync`" in capfd.readouterr().err
    (file,) = (tmp_path / "tracked").glob("wandb/run-*/*.wandb")
    log = list(records_in(file.read_bytes()))
    assert [row["step"] for row in rows(log) if "loss" in row] == list(range(1, 13))


def test_a_missing_key_is_an_error(
    small_set: Dataset, tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(LonghaulError, match=r"W&B refused the run: .*tracking\.wandb"):
        train_here(tracked(small_set, tmp_path, "online"))


def test_nodes_tell_how_busy_they_are(
    small_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_load, "SECONDS_BETWEEN_SAMPLES", 0.0)
    wanted = recipe(small_set, tmp_path)
    train_here(wanted)
    told = [record for record in records(wanted) if "node-0/cpu_percent" in record]
    assert [record["step"] for record in told] == list(range(1, 13))
    assert all(0 < record["node-0/memory_percent"] < 100 for record in told)


def test_disabled_tracking_leaves_wandb_alone(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=2)
    train_here(wanted)
    assert not [name for name in storage.files_below(wanted.run_url) if "wandb" in name]


def test_the_file_is_rewritten_whole(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path / "attempt-1.jsonl"), every_seconds=1e9)
    file.log({"step": 1})
    file.log({"step": 2})
    file.flush()
    lines = (tmp_path / "attempt-1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["attempt-1.jsonl"]
