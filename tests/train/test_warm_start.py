"""A new run begins with the weights of another one: rows by the keys of items, whatever trains."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.export.write import export_run
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.train import warm_start
from pipeline.train.checkpoint import COMMIT
from pipeline.train.table import sharded
from pipeline.train.warm_start import WarmRead
from tests.train.runs import (
    assert_bit_equal,
    checkpoint_of,
    final_tensors,
    recipe,
    records,
    train_apart,
    train_here,
)

SHARDED = {"home": "sharded"}
VECTORS = "weight/item_embedding.weight"


def prepared(folder: Path, items: list[str], users: int = 120) -> Dataset:
    """Users who walk through the items in circles, each from where he is."""
    rng = np.random.default_rng(3)
    lines = []
    for user in range(users):
        at, length = rng.integers(len(items)), int(rng.integers(5, 15))
        lines += [f"{user} {items[(at + step) % len(items)]}\n" for step in range(length)]
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("".join(lines))
    prepare(PrepareOptions(inputs=[f"{folder}/log.txt"], output=f"{folder}/set"))
    return open_dataset(f"{folder}/set")


OLD = [f"b{n:02d}" for n in range(30)]
NEW = ["a-new", *OLD[3:], "b05-new", "c-new"]  # ids shift, three are gone and three are new


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    folder: Path = tmp_path_factory.mktemp("sets")
    return prepared(folder / "old", OLD), prepared(folder / "new", NEW)


def keys(dataset: Dataset) -> list[Any]:
    found: list[Any] = dataset.read_items().column("key").to_pylist()
    return found


def trained(dataset: Dataset, folder: Path, name: str = "old", **changes: Any) -> Recipe:
    wanted = recipe(dataset, folder, name, **{"train__steps": 6, **changes})
    train_here(wanted)
    return wanted


def warm(dataset: Dataset, folder: Path, source: Recipe | str, name: str, **changes: Any) -> Recipe:
    url = source if isinstance(source, str) else source.run_url
    kept = {"train__steps": 2, "train__keep_checkpoints": 9, "train__checkpoint_every": 1}
    return recipe(dataset, folder, name, **{**kept, **changes, "train__init_from": url})


def begun(wanted: Recipe) -> dict[str, torch.Tensor]:
    """The state that the run began with."""
    return checkpoint_of(wanted.run_url, 0).tensors()


@pytest.mark.parametrize("model", ["lrurec", "sasrec"])
def test_rows_follow_their_keys(
    sets: tuple[Dataset, Dataset], tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = sets
    source = trained(old, tmp_path, model__name=model)
    there = checkpoint_of(source.run_url, 6)
    wanted = warm(new, tmp_path, source, "warm", model__name=model)
    train_here(wanted)
    before, after = there.tensors(), begun(wanted)
    kept = [key for key in keys(new) if key in keys(old)]
    assert len(kept) == 27
    for name in ("item_embedding.weight", "item_bias"):
        if f"weight/{name}" not in before:
            continue
        rows, found = (
            state[f"weight/{name}"].view(len(of) + 1, -1)
            for state, of in ((before, keys(old)), (after, keys(new)))
        )
        assert torch.equal(found[0], rows[0])
        for key in kept:
            assert torch.equal(found[1 + keys(new).index(key)], rows[1 + keys(old).index(key)])
    fresh = after[VECTORS].view(len(NEW) + 1, -1)[[1 + keys(new).index("a-new")]]
    assert 0.001 < float(fresh.std()) < 0.4
    for name, tensor in after.items():
        if name.startswith("exp_avg"):
            assert not tensor.any()
        elif "item_" not in name:
            assert torch.equal(tensor, before[name]), name
    told = {"items_kept": 27, "items_new": 3, "items_gone": 3}
    origin = {"url": source.run_url, "step": 6, "sha256": there.commit.sha256, **told}
    attempt = storage.read_json(f"{wanted.run_url}/attempts/attempt-1.json")
    assert attempt["begun_with"] == origin
    last = checkpoint_of(wanted.run_url, 2).state.begun_with
    assert last is not None
    assert last.model_dump() == origin
    assert "27 items keep their rows, 3 are new, 3 are gone" in capsys.readouterr().err


ENGINES: list[dict[str, Any]] = [
    {"train__engine": "deepspeed", "train__zero_stage": 0},
    {"train__engine": "deepspeed", "train__zero_stage": 1, "train__precision": "bf16"},
    {"train__engine": "deepspeed", "train__zero_stage": 2},
    {"train__engine": "deepspeed", "train__zero_stage": 3},
    {"train__table": SHARDED},
    {"train__table": SHARDED, "train__engine": "deepspeed", "train__zero_stage": 3},
]


def weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.view(-1) for name, tensor in state.items() if name.startswith("weight/")}


@pytest.mark.parametrize("home", ["dense", pytest.param("sharded", marks=pytest.mark.slow)])
def test_every_engine_begins_alike(
    sets: tuple[Dataset, Dataset], tmp_path: Path, home: str
) -> None:
    """From a dense table and from a sharded one, to both."""
    source = trained(sets[0], tmp_path, train__table={"home": home})
    first = warm(sets[1], tmp_path, source, "first", train__steps=1)
    train_here(first)
    for number, engine in enumerate(ENGINES):
        changes = {"train__steps": 1, **engine}
        wanted = warm(sets[1], tmp_path, source, f"engine-{number}", **changes)
        train_here(wanted)
        state = begun(wanted)
        assert_bit_equal(weights(state), weights(begun(first)))
        assert not any(t.any() for name, t in state.items() if not name.startswith("weight/"))


@pytest.mark.parametrize(
    ("workers", "engine"),
    [
        (2, {"train__table": SHARDED}),
        pytest.param(3, {"train__table": SHARDED}, marks=pytest.mark.slow),
        pytest.param(2, ENGINES[2], marks=pytest.mark.slow),
        pytest.param(3, ENGINES[3], marks=pytest.mark.slow),
    ],
)
def test_any_number_of_workers_begins_alike(
    sets: tuple[Dataset, Dataset], tmp_path: Path, workers: int, engine: dict[str, Any]
) -> None:
    source = trained(sets[0], tmp_path)
    alone = warm(sets[1], tmp_path, source, "alone")
    shared = warm(sets[1], tmp_path, source, "shared", **engine)
    train_here(alone)
    said = train_apart(shared, tmp_path, workers)
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("27 items keep their rows") == 1
    assert_bit_equal(weights(begun(shared)), weights(begun(alone)))


@given(data=st.data())
def test_any_piece_of_a_table_is_read(data: st.DataObject) -> None:
    old, new, d = (data.draw(st.integers(1, most)) for most in (40, 40, 3))
    found = data.draw(
        st.lists(st.integers(0, old - 1), max_size=new, unique=True).map(
            lambda ids: [*ids, *[-1] * (new - len(ids))]
        )
    )
    found = data.draw(st.permutations(found))
    begin = data.draw(st.integers(0, new * d))
    end = data.draw(st.integers(begin, new * d))
    source = torch.arange(old * d, dtype=torch.float32)
    most = 0

    def read(tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        nonlocal most
        assert tensor == VECTORS
        assert end is not None
        most = max(most, end - begin)
        return source[begin:end]

    def start(rows: torch.Tensor, generator: torch.Generator) -> None:
        rows.normal_(generator=generator)

    shapes = {"item_embedding.weight": [new, d], "updates/item_embedding.weight": [new]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "BLOCK_ROWS", 4)
        patch.setattr(warm_start, "BLOCK_ROWS", 4)
        reader = WarmRead(read, torch.tensor(found), shapes, 5, start)
        whole, part = reader(VECTORS).view(new, d), reader(VECTORS, begin, end)
        fresh = torch.cat([rows for _, rows in sharded.started_rows(range(new), d, 5, start)])
    assert most <= 4 * d
    for row, place in enumerate(found):
        wanted = fresh[row] if place < 0 else source.view(old, d)[place]
        assert torch.equal(whole[row], wanted)
    assert torch.equal(part, whole.view(-1)[begin:end])
    assert torch.equal(reader("updates/item_embedding.weight"), torch.zeros(new))


@pytest.mark.parametrize("table", [{}, SHARDED], ids=["dense", "sharded"])
def test_resuming_needs_no_source(
    sets: tuple[Dataset, Dataset], tmp_path: Path, table: dict[str, Any]
) -> None:
    changes = {"train__steps": 5, "train__checkpoint_every": 100, "train__table": table}
    source = trained(sets[0], tmp_path)
    whole = warm(sets[1], tmp_path, source, "whole", **changes)
    parted = warm(sets[1], tmp_path, source, "parted", **changes)
    train_here(whole)
    train_here(parted, stop_before=3)
    # As if it had been killed: only what it began with is left.
    shutil.rmtree(checkpoint_of(parted.run_url, 3).url)
    shutil.rmtree(source.run_url)
    assert train_here(parted).state == "done"
    assert_bit_equal(final_tensors(parted), final_tensors(whole))


@pytest.mark.parametrize("table", [{}, SHARDED], ids=["dense", "sharded"])
def test_a_bundle_is_a_source(
    sets: tuple[Dataset, Dataset],
    small_set: Dataset,
    tmp_path: Path,
    table: dict[str, Any],
) -> None:
    """The same rows as from the run, with keys of strings and integers; bf16 is rounded."""
    for number, (old, new) in enumerate([sets, (small_set, small_set)]):
        source = trained(old, tmp_path, f"old-{number}")
        of_run = warm(new, tmp_path, source, f"of-run-{number}", train__table=table)
        train_here(of_run)
        export_run(source.run_url, f"{tmp_path}/bundle-{number}")
        export_run(source.run_url, f"{tmp_path}/half-{number}", dtype="bf16")
        shutil.rmtree(source.run_url)
        states = []
        for kind in ("bundle", "half"):
            url, name = f"{tmp_path}/{kind}-{number}", f"of-{kind}-{number}"
            wanted = warm(new, tmp_path, url, name, train__table=table)
            train_here(wanted)
            states.append(begun(wanted))
        assert_bit_equal(states[0], begun(of_run))
        fresh = 0 if old is new else 8 * 3  # elements of rows that are new, and not rounded
        for name, tensor in states[1].items():
            rounded = states[0][name].bfloat16().float() == tensor
            assert int((~rounded).sum()) <= (fresh if name == VECTORS else 0)
    weights = tmp_path / "bundle-0" / "weights-000.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(LonghaulError, match=r"weights-000.safetensors is damaged"):
        train_here(warm(sets[1], tmp_path, f"{tmp_path}/bundle-0", "refused"))


def test_a_warm_run_starts_lower(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    source = trained(sets[0], tmp_path, train__steps=60)
    wanted = warm(sets[1], tmp_path, source, "warm")
    cold = recipe(sets[1], tmp_path, "cold", train__steps=2)
    train_here(wanted)
    train_here(cold)
    first = [next(r["loss"] for r in records(run) if "loss" in r) for run in (wanted, cold)]
    assert first[0] < first[1] - 0.5


def test_the_old_data_set_may_be_gone(tmp_path: Path) -> None:
    source = trained(prepared(tmp_path / "data", OLD), tmp_path)
    new = prepared(tmp_path / "new-data", NEW)
    shutil.rmtree(tmp_path / "data")
    train_here(warm(new, tmp_path, source, "warm"))
    # A run of before kept no map of its own.
    for commit in Path(source.run_url).glob(f"checkpoints/*/{COMMIT}"):
        document = storage.read_json(str(commit))
        del document["items"]
        storage.write_json(str(commit), document)
    with pytest.raises(LonghaulError, match="no data set at"):
        train_here(warm(new, tmp_path, source, "refused"))
    prepared(tmp_path / "data", NEW)
    with pytest.raises(LonghaulError, match=r"keeps no map of its items, and .* other data"):
        train_here(warm(new, tmp_path, source, "refused"))
    shutil.rmtree(tmp_path / "data")
    prepared(tmp_path / "data", OLD)
    train_here(warm(new, tmp_path, source, "refused"))


def test_what_does_not_fit_is_refused(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    old, new = sets
    source = trained(old, tmp_path, "old", model={"name": "sasrec", "d": 8, "max_history": 20})
    number = 0

    def refused(match: str, of: Recipe | str = source, **changes: Any) -> None:
        nonlocal number
        number += 1
        with pytest.raises(LonghaulError, match=match):
            train_here(warm(new, tmp_path, of, f"refused-{number}", **changes))

    refused(r"is a sasrec, the recipe's model a lrurec: set model.name sasrec")
    wider = {"name": "sasrec", "d": 16, "max_history": 20}
    refused(r"\[20, 8\] there, \[20, 16\] here|model.d: 8 before, 16 now", model=wider)
    longer = {"name": "sasrec", "d": 8, "max_history": 30}
    refused(
        r"do not fit: position_embedding.weight \[20, 8\] there, \[30, 8\] here "
        r"\(model.max_history: 20 before, 30 now\): set the model as it was",
        model=longer,
    )
    nothing = str(tmp_path / "nothing")
    refused(f"no run or bundle at {nothing}", of=nothing)
    begun_only = recipe(old, tmp_path, "begun")
    storage.write_bytes(f"{begun_only.run_url}/config.yaml", begun_only.to_yaml().encode())
    refused("has no checkpoint yet", of=begun_only)
    path = Path(source.run_url) / "items.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    same = {"name": "sasrec", "d": 8, "max_history": 20}
    refused(r"items.parquet is damaged", model=same)


def test_keys_of_another_type_are_refused(
    sets: tuple[Dataset, Dataset], small_set: Dataset, tmp_path: Path
) -> None:
    source = trained(small_set, tmp_path)
    with pytest.raises(LonghaulError, match=r"have integers as keys, those of .* strings: "):
        train_here(warm(sets[1], tmp_path, source, "refused"))


def test_other_settings_of_equal_shape_are_told(
    sets: tuple[Dataset, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained(sets[0], tmp_path)
    train_here(warm(sets[1], tmp_path, source, "warm", model__dropout=0.4))
    assert "other settings: model.dropout:" in capsys.readouterr().err


def test_the_source_is_part_of_the_run(sets: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    source = trained(sets[0], tmp_path)
    wanted = warm(sets[1], tmp_path, source, "warm")
    train_here(wanted)
    for other in (tmp_path / "else", None):
        changed = recipe(
            sets[1],
            tmp_path,
            "warm",
            train__steps=2,
            train__init_from=other and str(other),
        )
        with pytest.raises(LonghaulError, match=r"another recipe \(train.init_from: "):
            train_here(changed)
