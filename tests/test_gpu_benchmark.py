"""benchmarks/gpu, in miniature: every case runs, and needs nothing but models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_it_imports_models_only():
    # What a machine with torch does not have, pydantic apart.
    absent = ["deepspeed", "fsspec.core", "pipeline", "polars", "pyarrow", "ray", "webdataset"]
    asked = f"import sys, benchmarks.gpu.__main__; print([m for m in {absent} if m in sys.modules])"
    done = run("-c", asked)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_the_time_does_not_suffice_for_is_named(tmp_path):
    pytest.importorskip("triton")
    done = run("-m", "benchmarks.gpu", "--check", "--minutes", "0", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["section"] for row in rows} >= {"parity", "recurrence", "steps", "losses"}
    assert all(row["note"] == "not reached: the time was up" for row in rows)
    assert "sampled softmax" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_check_runs_every_case(tmp_path):
    pytest.importorskip("triton")
    done = run("-m", "benchmarks.gpu", "--check", "--minutes", "20", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row for row in rows if row["note"].startswith(("FAILED", "not reached"))] == []
    assert all(row["error"] is not None for row in rows if row["section"] == "parity")
    assert any("lrurec" in row["case"] and row["per_second"] for row in rows)


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path):
    from benchmarks.gpu.__main__ import report
    from benchmarks.gpu.bench import SMALL, Bench, Row

    bench = Bench(SMALL, 1)
    bench.device = "cpu"

    def fails() -> Row:
        raise RuntimeError("no such | thing\nmore")

    bench.case("one", "bad", fails)
    bench.case("one", "good", lambda: Row("", "", 2.0, 1.0, 5e7, "tokens"))
    report(bench, tmp_path, "a machine")
    page = (tmp_path / "gpu.md").read_text()
    assert "FAILED: RuntimeError: no such / thing" in page
    assert "| good | 2.000 | 1.000 | 50% | 50.0 M tokens |" in page


def test_floors_of_a_gpu_that_is_not_here(tmp_path):
    done = run("-m", "benchmarks.gpu", "--floors", "h200", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert not any(row["note"].startswith("FAILED") or row["milliseconds"] for row in rows)
    found = {row["case"]: row["floor"] for row in rows}
    # 256 x 2,048 tokens of 128 pairs of bf16, in and out at 4.8 TB/s; backward there are three.
    once = 256 * 2048 * 128 * 2 * 2 / 4.8e9
    assert found["256 x 2,048, d 64, bf16, forward"] == pytest.approx(2 * once)
    assert found["256 x 2,048, d 64, bf16, backward"] == pytest.approx(3 * once)
    steps = [row for row in rows if row["section"].startswith("whole steps, predicted")]
    assert len(steps) == 6
    assert all(row["note"].startswith("predicted: ") and row["per_second"] for row in steps)
    refused = run("-m", "benchmarks.gpu", "--floors", "h201", "--output", str(tmp_path))
    assert refused.returncode == 1
    assert "h200" in refused.stderr
