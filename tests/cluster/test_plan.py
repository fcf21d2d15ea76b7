"""The plan: its parts by hand, its time by hand, what must never be, and the command."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from cluster.hardware import DEVICES, Device, HardwarePart, Link, Reached
from cluster.plan.counts import counts_of
from cluster.plan.estimate import RESOURCES, Estimate, estimate, seconds_of, step_parts
from cluster.plan.exchange import Collective, Ways, collectives_of
from cluster.plan.work import Work, sizes_of, work_of
from cluster.spec import ClusterSpec, load_spec
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.process import app
from pipeline.train.activations import activation_bytes
from pipeline.train.forecast import forecast
from tests.train.runs import ROOT, environment, recipe, write

GPUS = {"workers_per_node": 8, "gpus_per_worker": 1, "hardware": {"device": "h100"}}
SAMPLED = {"name": "sampled_softmax", "uniform": 24, "batch": 8}
ALL = Reached(source="a test", products=1, mixing=1, softmax=1, passes=1, rows=1, links=1, launch=0)
"""Every peak is reached and a launch is free."""

Make = Callable[..., Recipe]


@pytest.fixture
def make(small_set: Dataset, tmp_path: Path) -> Make:
    """300 users over 50 items; lanes of 128 tokens, LRURec of width 8 and two blocks."""

    def made(**changes: Any) -> Recipe:
        return recipe(small_set, tmp_path, **{"data__lanes": 4, **changes})

    return made


def spec_of(**keys: Any) -> ClusterSpec:
    return ClusterSpec.model_validate(keys)


def planned(wanted: Recipe, workers: list[int] | None = None, **keys: Any) -> Estimate:
    return estimate(wanted, spec_of(**keys), counts_of(wanted, None, None), workers)


def works(wanted: Recipe, workers: int = 1, gpu: bool = False) -> dict[str, Work]:
    return work_of(wanted, sizes_of(wanted, counts_of(wanted, None, None), workers, gpu))


T, D, V, BLOCKS, LANES = 128, 8, 50, 2, 4
TABLE = (V + 1) * (D + 1)  # LRURec has a bias an item


def test_the_trunk_by_hand(make: Make) -> None:
    wanted = make()
    found = works(wanted)["trunk"]
    # In 4d, out 4d, twice 4d of the feed-forward: 16 d^2 weights a block, two operations each.
    assert found.products == LANES * 3 * T * BLOCKS * 2 * 16 * D**2
    # A complex multiplication and addition of each of 2d channels.
    assert found.mixing == LANES * 3 * T * BLOCKS * 8 * 2 * D
    assert found.passes == LANES * 5 * activation_bytes(wanted.model, "fp32", T)
    again = works(make(model__activation_checkpointing=True))["trunk"]
    assert again.products == found.products * 4 / 3
    assert again.passes == found.passes * 7 / 5


def test_losses_and_lookup_by_hand(make: Make) -> None:
    full = works(make())
    assert full["loss"].softmax == LANES * 6 * T * (V + 1) * D
    # The table's gradient is made, scaled, added to the lookup's, and to that of other lanes.
    assert full["loss"].passes == 4 * TABLE * (LANES * 6 + (LANES - 1) * 3)
    assert full["lookup"] == Work(rows=LANES * T * D * 20, passes=LANES * 4 * TABLE)
    sampled = works(make(train__loss=SAMPLED))
    assert sampled["loss"].softmax == LANES * 6 * T * (32 + 1) * D
    assert sampled["loss"].passes == LANES * 16 * TABLE
    # Triton kernels make the scores three times and twice.
    for loss, times, ours in (({}, 5, full["loss"]), (SAMPLED, 4, sampled["loss"])):
        kernel = works(make(train__loss=loss), gpu=True)["loss"]
        assert kernel.softmax == ours.softmax * times / 3
        assert kernel.passes == ours.passes
    # Where the terms of 96 targets and the table's gradient exceed 16 MiB, the scores come twice.
    wider = make(model__d=64)
    for items, times in ((26_213, 3), (26_214, 4)):
        sizes = sizes_of(wider, counts_of(wider, 10**6, items), 1, gpu=False)
        assert work_of(wider, sizes)["loss"].softmax == LANES * 2 * times * T * (items + 1) * 64
    wide = make(model__d=256)
    pairs = LANES * T * (V + 1)
    assert works(wide, gpu=True)["loss"].passes - works(wide)["loss"].passes == pairs * 6 * 4


def test_the_update_by_hand(make: Make) -> None:
    wanted = make()
    parameters = forecast(wanted, counts_of(wanted, None, None).dataset, 1).parameters
    assert works(wanted)["update"].passes == 40 * parameters
    zero = make(train__engine="deepspeed", train__zero_stage=2)
    assert works(zero, 2)["update"].passes == 16 * parameters + (40 + 8) * parameters / 2
    off = works(make(train__engine="deepspeed", train__offload="optimizer"), 2)["update"]
    assert off.host_link == 8 * parameters / 2
    assert off.host_passes == 40 * parameters / 2
    sharded = make(train__table={"home": "sharded"}, train__loss=SAMPLED)
    found = works(sharded, 2)["update"]
    assert found.passes == 40 * (parameters - TABLE)
    counts = counts_of(sharded, None, None)
    touched = counts.distinct(LANES * (T + 8), LANES * 24)
    assert found.rows == pytest.approx(72 * touched / 2 * (D + 1))
    every = works(make(train__table={"home": "sharded", "optimizer": "dense_adam"}), 2)["update"]
    assert every.passes == pytest.approx(40 * (parameters - TABLE) + 64 * TABLE / 2)


def test_the_sharded_softmax_by_hand(make: Make) -> None:
    found = works(make(train__table={"home": "sharded"}), 2)["loss"]
    # Two micro-batches of both workers' tokens against half of the rows, four products.
    assert found.softmax == 2 * 8 * (2 * T) * (V + 1) / 2 * D


def test_distinct_items_by_brute_force(make: Make) -> None:
    import numpy as np

    known = counts_of(make(), None, None)
    rng = np.random.default_rng(0)
    share = known.dataset.read_items().column("train_events").to_numpy()
    share = share / share.sum()
    drawn = [
        len(set(rng.choice(V, 60, p=share)) | set(rng.integers(-1, V, 20))) for _ in range(400)
    ]
    assert known.distinct(60, 20) == pytest.approx(np.mean(drawn), rel=0.04)
    told = counts_of(make(), 10_000, V)
    drawn = [len(set(rng.integers(0, V + 1, 80))) for _ in range(400)]
    assert told.distinct(60, 20) == pytest.approx(np.mean(drawn), rel=0.02)
    assert told.items == V
    assert int(told.dataset.train_events.sum()) == 10_000
    assert told.token_bytes == pytest.approx(4, rel=0.5)


# What benchmarks.steps counted on real steps of two ranks: bytes sent and got by a rank, of lanes
# of 1,024 tokens, two a rank, and 5,000 items.
COUNTED = [
    ({"train__engine": "torch"}, {"all_reduce": 3_670_648}),
    ({"train__engine": "deepspeed", "train__zero_stage": 0}, {"all_reduce": 3_670_648}),
    (
        {"train__engine": "deepspeed", "train__zero_stage": 1},
        {"all_reduce": 3_670_664, "all_gather": 1_835_312},
    ),
    (
        {"train__engine": "deepspeed", "train__zero_stage": 1, "train__precision": "bf16"},
        {"all_reduce": 1_835_360, "all_gather": 917_656},
    ),
    (
        {"train__engine": "deepspeed", "train__zero_stage": 2},
        {"all_reduce": 7_341_264, "all_gather": 1_835_312},
    ),
    (
        {"train__engine": "deepspeed", "train__zero_stage": 3},
        {"all_reduce": 80, "all_gather": 3_115_560, "reduce_scatter": 3_670_608},
    ),
    (
        {"train__table": {"home": "sharded"}},
        {"all_reduce": 3_245_768, "all_gather": 1_073_952},
    ),
]


@pytest.mark.parametrize(("changes", "counted"), COUNTED)
def test_collectives_as_counted(
    make: Make, changes: dict[str, Any], counted: dict[str, int]
) -> None:
    wanted = make(data__lane_tokens=1024, model__d=64, **changes)
    sizes = sizes_of(wanted, counts_of(wanted, 10_000, 5_000), 2, gpu=False)
    found = dict.fromkeys(counted, 0.0)
    for one in collectives_of(wanted, sizes):
        if one.kind != "all_to_all":  # as many rows as there are items in the data
            found[one.kind] += 2 * one.sent(2)
    assert found == pytest.approx(counted, rel=0.01, abs=100)  # real lanes are not quite full


def test_rows_are_exchanged_by_the_micro_batch(make: Make) -> None:
    wanted = make(train__table={"home": "sharded", "storage": "bf16"}, train__loss=SAMPLED)
    sizes = sizes_of(wanted, counts_of(wanted, None, None), 2, gpu=False)
    rows = [one for one in collectives_of(wanted, sizes) if one.kind == "all_to_all"]
    # An id, a row in bf16, its gradient in fp32.
    assert [one.bytes for one in rows] == [2 * sizes.fetched * (8 + (2 + 4) * (D + 1))]
    assert collectives_of(wanted, replace(sizes, workers=1)) == []


def test_time_on_links_by_hand() -> None:
    inside = Link.model_validate({"bandwidth": "100GB", "latency": 0})
    between = Link.model_validate({"bandwidth": "10GB", "latency": 0.001})
    one, two = (Ways(w, 8, inside, between, reached=0.5) for w in (8, 16))
    ring = Collective("all_reduce", 1e9, calls=1)
    assert one.seconds(ring) == pytest.approx(2 * 7 / 8 * 1e9 / 50e9)
    # A ring crosses between the nodes once each way; four levels of a tree, there and back.
    assert two.seconds(ring) == pytest.approx(2 * 15 / 16 * 1e9 / 5e9 + 8 * 0.001)
    rows = Collective("all_to_all", 1e9, calls=2)
    assert one.seconds(rows) == pytest.approx(7 / 8 * 1e9 / 50e9)
    # Half of what each of eight workers sends is for the other node.
    assert two.seconds(rows) == pytest.approx(8 * 1e9 / 2 / 5e9 + 8 * 0.001)
    assert Ways(1, 8, inside, between, 0.5).seconds(ring) == 0


def device(**changes: Any) -> Device:
    known = {"name": "ours", "fp32": 1e12, "bf16": 4e12, "bandwidth": 10**11, "reached": ALL}
    return Device.model_validate(known | changes)


def test_time_of_work_by_hand() -> None:
    work = Work(products=1e12, mixing=1e12, softmax=2e12, passes=1e11, rows=1e11, launches=1000)
    spec = spec_of(hardware={"host": {"link": "10GB", "bandwidth": "20GB"}})
    assert seconds_of(work, device(), 1, False, spec) == pytest.approx(6)
    assert seconds_of(work, device(), 1, True, spec) == pytest.approx(3)
    assert seconds_of(work, device(gpu=False), 2, False, spec) == pytest.approx(3)
    slower = ALL.model_copy(update={"softmax": 0.5, "rows": 0.25, "launch": 0.001})
    assert seconds_of(work, device(reached=slower), 1, False, spec) == pytest.approx(6 + 2 + 3 + 1)
    host = Work(host_link=1e10, host_passes=2e10)
    assert seconds_of(host, device(), 1, False, spec) == pytest.approx(2)


amounts = st.fixed_dictionaries(dict.fromkeys(RESOURCES, st.floats(0, 1e15)))
shares = st.floats(0.01, 1)


@given(amounts, st.sampled_from(RESOURCES), st.floats(0, 1e15), shares)
def test_more_work_is_never_faster(
    given_: dict[str, float], name: str, more: float, share: float
) -> None:
    reached = ALL.model_copy(update={"products": share, "rows": share, "launch": 1e-6})
    spec, on = spec_of(), device(reached=reached)
    work = Work(**given_)
    longer = seconds_of(work + Work(**{name: more}), on, 1, False, spec)
    assert longer >= seconds_of(work, on, 1, False, spec)
    assert seconds_of(work, device(reached=reached, fp32=2e12), 1, False, spec) <= longer


@given(
    st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]),
    st.integers(1, 64),
    st.integers(1, 8),
    st.floats(0, 1e12),
    st.floats(0, 1e12),
)
def test_more_bytes_and_slower_links_are_never_faster(
    kind: Any, workers: int, a_node: int, size: float, more: float
) -> None:
    fast, slow = (Link.model_validate({"bandwidth": b}) for b in ("100GB", "1GB"))
    ways = Ways(workers, a_node, fast, slow, 0.7)
    taken = ways.seconds(Collective(kind, size, 1))
    assert ways.seconds(Collective(kind, size + more, 1)) >= taken
    assert replace(ways, between=fast).seconds(Collective(kind, size, 1)) <= taken


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__engine": "deepspeed", "train__zero_stage": 3},
        {"train__table": {"home": "sharded"}, "train__loss": SAMPLED},
    ],
)
def test_own_work_never_grows_with_workers(make: Make, changes: dict[str, Any]) -> None:
    wanted = make(data__lanes=8, **changes)
    spec, counts = spec_of(), counts_of(wanted, None, None)
    before = {"exchange": 0.0}
    for workers in (1, 2, 3, 4, 8):
        found = step_parts(wanted, spec, DEVICES["cpu"], counts, workers)
        exchange = found.pop("exchange")
        assert (exchange == 0) == (workers == 1)
        assert all(found[part] <= before.get(part, found[part]) for part in found)
        before = found


def test_a_column_adds_up(make: Make) -> None:
    wanted = make(data__lanes=16, train__checkpoint_every=10)
    found = planned(wanted, [1, 8, 16], price_per_hour=24, **GPUS)
    for column in found.columns:
        busy = sum(column.parts.values())
        assert column.step_seconds == max(busy, *column.beside.values())
        assert column.tokens_per_second == pytest.approx(16 * T / column.step_seconds)
        assert column.hours == pytest.approx(column.step_seconds * wanted.train.steps / 3600)
        assert column.worker_hours == pytest.approx(column.hours * column.workers)
        assert column.price == pytest.approx(24 * column.nodes * column.hours)
        dataset = counts_of(wanted, None, None).dataset
        assert column.memory == forecast(wanted, dataset, column.workers).memory
        assert column.micro_batches == 16 // column.workers
        assert column.efficiency == pytest.approx(
            column.tokens_per_second / column.workers / found.columns[0].tokens_per_second
        )
    assert [column.nodes for column in found.columns] == [1, 1, 2]


def test_the_store_may_be_what_lasts(make: Make) -> None:
    slow = GPUS | {"hardware": {"device": "h100", "store": {"read": 100, "write": "1GB"}}}
    wanted = make(reading={"memory": 0})
    [column] = planned(wanted, [2], **slow).columns
    assert column.bottleneck == "reading"
    counts = counts_of(wanted, None, None)
    assert column.step_seconds == pytest.approx(2 * 2 * T * counts.token_bytes / 100)
    # Kept in memory after the first epoch.
    assert planned(make(), [2], **slow).columns[0].bottleneck != "reading"
    slow["hardware"]["store"] = {"write": 1000}
    [column] = planned(make(train__checkpoint_every=2), [2], **slow).columns
    assert column.bottleneck == "upload"
    size = forecast(wanted, counts.dataset, 2).checkpoint_bytes
    assert column.step_seconds == pytest.approx(size / 1000 / 2)


def test_what_does_not_fit_is_told_with_what_would(make: Make) -> None:
    zero = {"train__engine": "deepspeed", "train__loss": SAMPLED, "model__d": 64}
    wanted = make(**zero)
    counts = counts_of(wanted, 10_000, 200_000)  # of whose table a copy is 52 MB
    spec = spec_of(**(GPUS | {"hardware": {"device": {"like": "h100", "memory": "200MB"}}}))
    with pytest.raises(LonghaulError) as refused:
        estimate(wanted, spec, counts, [2])
    told = str(refused.value)
    assert "\n" not in told
    assert "run does not fit on 2 workers: a GPU's worker needs" in told
    assert "most of it checkpoint" not in told  # which is the host's
    assert "GB are usable; it fits with train.table.home=sharded" in told
    helped = make(**zero, train__table={"home": "sharded"})
    assert estimate(helped, spec, counts, [2]).columns[0].fits
    # Where some of the numbers of workers fit, the others are told in their columns.
    assert [one.fits for one in estimate(helped, spec, counts, [1, 4]).columns] == [False, True]


def test_presets_and_own_figures() -> None:
    for name in DEVICES:
        part = HardwarePart.model_validate({"device": name})
        assert part.device == DEVICES[name]
        assert part.inside_of(DEVICES[name]).bandwidth > 0
    changed = HardwarePart.model_validate(
        {"device": {"like": "h200", "memory": "96GB", "reached": {"products": 0.6}}}
    )
    assert changed.device is not None
    assert changed.device.memory == 96 * 10**9
    assert changed.device.fp32 == DEVICES["h200"].fp32
    assert changed.device.reached.products == 0.6
    assert changed.device.reached.source.startswith("given in the specification, the others")
    with pytest.raises(ValidationError, match="no device is called 'h20'; did you mean 'h200'"):
        HardwarePart.model_validate({"device": "h20"})


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "clusters").glob("*.yaml")))
def test_specifications_of_the_project_can_be_planned_for(file: Path, make: Make) -> None:
    wanted = make(data__lanes=64)
    found = estimate(wanted, load_spec(str(file)), counts_of(wanted, None, None))
    assert all(column.fits for column in found.columns)


@pytest.mark.parametrize(
    ("keys", "workers", "told"),
    [
        ({"gpus_per_worker": 1}, None, "hardware.device is missing: say which GPU workers have"),
        ({"hardware": {"device": "h100"}}, None, "hardware.device h100 is a GPU, but gpus_per_wor"),
        ({**GPUS, "gpus_per_worker": 2}, None, "gpus_per_worker 2: a worker trains on one GPU"),
        ({}, [1, 5], "5 workers exceed data.lanes 4: set data.lanes to the most workers"),
    ],
)
def test_what_is_at_odds_is_told(
    make: Make, keys: dict[str, Any], workers: list[int] | None, told: str
) -> None:
    with pytest.raises(LonghaulError, match=told) as refused:
        planned(make(), workers, **keys)
    assert "\n" not in str(refused.value)


def test_the_command(make: Make, tmp_path: Path) -> None:
    spec = tmp_path / "cluster.yaml"
    spec.write_text(yaml.safe_dump(GPUS | {"price_per_hour": 30}))
    start = ["plan", str(write(make(), tmp_path)), "--cluster", str(spec)]
    said = CliRunner().invoke(app, [*start, "--workers", "4,1,2", "--json"])
    assert said.exit_code == 0, said.output
    document = json.loads(said.output)
    assert [column["workers"] for column in document["columns"]] == [1, 2, 4]
    assert document["coefficients"]["source"] == "assumed, never measured"
    assert any("hardware.between is not told: 50 GB/s" in one for one in document["unknown"])
    table = CliRunner().invoke(app, [*start, "--workers", "1,4", "data.lanes=8"])
    assert table.exit_code == 0, table.output
    for word in ("trunk", "exchange", "longest part", "price", "- shares of h100's peaks: assumed"):
        assert word in table.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "1,two"], "--workers '1,two' is no list of numbers of workers, as 1,2,4"),
        (["--workers", "0"], "--workers '0' is no list of numbers of workers"),
        (["--events", "1e6"], "--events and --items go together: give both or neither"),
        (["data.path=nowhere"], "manifest.json is missing"),
    ],
)
def test_wrong_options_are_told(make: Make, tmp_path: Path, options: list[str], told: str) -> None:
    start = ["plan", str(write(make(), tmp_path)), *options]
    said = CliRunner().invoke(app, start)
    assert said.exit_code != 0
    assert told in str(said.exception)
    assert "\n" not in str(said.exception)


def test_a_plan_needs_neither_data_nor_ray_nor_deepspeed(make: Make, tmp_path: Path) -> None:
    file = write(make(data__path=str(tmp_path / "not-there")), tmp_path)
    script = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from pipeline.process import run_command\n"
        "code = run_command()\n"
        "found = {'ray', 'deepspeed'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {found}' if found else code)\n"
    )
    options = ["plan", str(file), "--events", "5e9", "--items", "1e6"]
    said = subprocess.run(
        [sys.executable, "-c", script, "longhaul", *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    assert "counts of the data are yours" in said.stdout
