"""The command line from outside: help, recipes, and mistakes in one line with a non-zero exit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.config import load_recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.process import app
from tests.train.runs import ROOT, environment, longhaul, recipe, write

NO_RECIPES = ("clusters", "sweeps")
RECIPES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name not in NO_RECIPES)


@pytest.mark.parametrize("file", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid(file: Path) -> None:
    loaded = load_recipe(str(file))
    again = yaml.safe_load(loaded.to_yaml())
    assert again["name"] == loaded.name


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.stepz=5", "unknown key 'train.stepz'; did you mean 'steps'?"),
        ("model.blocs=5", "unknown key 'model.blocs'; did you mean 'blocks'?"),
        ("trian=5", "unknown key 'trian'; did you mean 'train'?"),
        ("data.window.size=5", "unknown key 'data.window.size'; there are: rule, length, bos"),
        ("train.loss.unifrom=5", "unknown key 'train.loss.unifrom'; did you mean 'uniform'?"),
        ("train.optimizer.l_r=1", "unknown key 'train.optimizer.l_r'; did you mean 'lr'?"),
        ("model.name=lru", "model: no model is called 'lru'; did you mean 'lrurec'?"),
        ("train.steps=soon", "train.steps: Input should be a valid integer"),
        ("train.steps=0", "train.steps: Input should be greater than or equal to 1, not 0"),
        ("train.precision=fp8", "train.precision: Input should be 'fp32', 'bf16' or 'autocast'"),
        ("train.zero_stage=0", "train: zero_stage 0 with precision bf16 does not exist"),
        ("data.window.length=9000", "data: window.length 9000 does not fit lane_tokens 4096"),
        ("data.window=none", "data.window: Input should be"),
        ("placement.workers=[2,1]", "placement: workers: the least, 2, exceed the most, 1"),
        ("placement.workers=99", "placement.workers 99 exceeds data.lanes 2: set data.lanes"),
        ("placement.launcher=alone", "placement.launcher alone is one worker, not 2"),
        ("train.objective.name=last", "train.objective.name: Input should be 'next_item', 'cloze'"),
        (
            "train.objective={name: cloze, mask_probability: 0.2}",
            "cloze does not suit model lrurec",
        ),
        ("nonsense", "override 'nonsense' is not of the form key=value"),
        ("name.x=1", "override name.x: name is a value, it has no keys below it"),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, told: str) -> None:
    with pytest.raises(LonghaulError) as refused:
        load_recipe(str(ROOT / "configs" / "demo.yaml"), [override])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_positions_must_suffice(small_set: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        LonghaulError, match=r"data\.window\.length 16 exceeds model\.max_history 12"
    ):
        recipe(small_set, tmp_path, model={"name": "sasrec", "d": 8, "max_history": 12})


def test_config_prints_the_resolved_recipe() -> None:
    said = longhaul("config", "configs/demo.yaml", "train.steps=7", cwd=ROOT)
    assert said.returncode == 0, said.stderr
    resolved = yaml.safe_load(said.stdout)
    assert resolved["train"]["steps"] == 7
    assert resolved["train"]["optimizer"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "no-such.yaml"], "error: cannot read .*no-such.yaml: it does not exist"),
        (["evaluate", "no/run"], "error: no run at no/run: config.yaml is missing"),
        (["recommend", "no/run", "--output", "x"], "error: no run at no/run"),
        (["report", "no/run", "--output", "x"], "error: no run at no/run"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    said = longhaul(*arguments, cwd=tmp_path)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert re.search(told, said.stderr)


def test_training_without_data_is_one_line(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, data__path=str(tmp_path / "nothing"))
    said = longhaul("train", str(write(wanted, tmp_path)))
    assert said.returncode == 1
    assert f"error: no data set at {tmp_path / 'nothing'}: manifest.json is missing" in said.stderr


def test_leaving_runs_exit_functions_and_keeps_the_exit_code(tmp_path: Path) -> None:
    script = "import atexit; import pipeline.process; atexit.register(print, 'bye'); "
    script += "pipeline.process.main()"
    said = subprocess.run(
        [sys.executable, "-c", script, "report", "nowhere", "--output", "page"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (said.returncode, said.stdout) == (1, "bye\n")
    assert said.stderr.startswith("error: no run at")


def test_a_foreign_package_called_models_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    script = "import sys; sys.path.insert(0, '.'); from pipeline.process import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 1
    assert "error: Python imported a foreign package called models" in said.stderr


def test_help_names_every_command_with_an_example() -> None:
    runner = CliRunner()
    said = runner.invoke(app, ["--help"])
    for command in ("prepare", "train", "evaluate", "recommend", "config", "synth", "report"):
        assert command in said.stdout
    for command in ("prepare", "train", "evaluate", "compare", "recommend", "synth"):
        assert f"longhaul {command}" in runner.invoke(app, [command, "--help"]).stdout


def test_train_evaluate_and_report(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__validation={"every": 6})
    trained = longhaul("train", str(write(wanted, tmp_path)), "--json")
    assert trained.returncode == 0, trained.stderr
    stands = json.loads(trained.stdout)
    assert (stands["state"], stands["step"], stands["run"]) == ("done", 12, wanted.run_url)
    said = longhaul(
        "evaluate", wanted.run_url, "--set", "seen=none", "--set", "ks=[1,10]", "--json"
    )
    assert said.returncode == 0, said.stderr
    result = json.loads(said.stdout)[0]["result"]
    assert result["protocol"]["seen"] == "none"
    assert result["data"] == small_set.fingerprint
    assert {"hr@1", "hr@10"} <= result["metrics"].keys()
    page = longhaul("report", wanted.run_url, "--output", str(tmp_path / "page"))
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "page" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"lrurec \(step (6|12)\)", (tmp_path / "page" / "report.html").read_text())
    wrong = longhaul("evaluate", wanted.run_url, "--set", "sen=none")
    assert wrong.returncode == 1
    assert "unknown key 'sen'; did you mean 'seen'?" in wrong.stderr
