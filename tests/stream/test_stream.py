"""Batches against the histories they were cut from; exactly once at every world size and resume."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, open_dataset
from pipeline.stream.segments import Window
from pipeline.stream.stream import RankStep, Stream, StreamConfig
from tests.conftest import prepare_histories, random_histories
from tests.stream.test_segments import by_hand

Segment = tuple[tuple[int, ...], tuple[int, ...]]


def segments_in(step: RankStep) -> list[Segment]:
    """(inputs, targets) of every live segment of a step."""
    found = []
    for micro in step.micro:
        offsets = micro.batch.offsets.tolist()
        for begin, end in pairwise(offsets):
            targets = tuple(micro.batch.targets[begin:end].tolist())
            if any(targets):
                found.append((tuple(micro.batch.items[begin:end].tolist()), targets))
    return found


def expected(histories: list[list[int]], window: Window) -> Counter[Segment]:
    """Every segment of an epoch, from the raw histories (leave-one-out drops two events)."""
    found: Counter[Segment] = Counter()
    # prepare numbers items by their sorted keys.
    number = {item: i + 1 for i, item in enumerate(sorted({i for h in histories for i in h}))}
    for history in histories:
        train = [number[item] for item in (history[:-2] if len(history) >= 3 else history)]
        for start, stop, bos in by_hand(len(train), window):
            inputs = [0, *train[start : stop - 1]] if bos else train[start - 1 : stop - 1]
            found[(tuple(inputs), tuple(train[start:stop]))] += 1
    return found


def steps_of(stream: Stream, epoch: int) -> list[RankStep]:
    stream.start(epoch)
    steps = []
    while (step := stream.next_step()).segments:
        steps.append(step)
    stream.close()
    return steps


@pytest.mark.parametrize("rule", ["tiles", "last", "prefixes", "lrurec"])
@pytest.mark.parametrize("bos", [True, False])
def test_an_epoch_holds_every_segment_once(tmp_path: Path, rule: str, bos: bool) -> None:
    histories = random_histories(200, 30, seed=3)
    dataset = prepare_histories(histories, tmp_path)
    window = Window(rule=rule, length=9, bos=bos)
    config = StreamConfig(window=window, lanes=3, lane_tokens=64, shuffle_members=7)
    stream = Stream(dataset, config, seed=5, rank=0, world_size=1)
    first, second = steps_of(stream, 0), steps_of(stream, 1)
    assert Counter(s for step in first for s in segments_in(step)) == expected(histories, window)
    assert Counter(s for step in second for s in segments_in(step)) == expected(histories, window)
    assert [segments_in(s) for s in first] != [segments_in(s) for s in second]
    for step in first:
        assert all(len(micro.batch.items) <= 64 for micro in step.micro)
        assert step.targets == sum(len(targets) for _, targets in segments_in(step))
        assert step.segments == len(segments_in(step))


def lane_trace(dataset: Dataset, config: StreamConfig, world_size: int) -> list[dict[int, object]]:
    """For each global step, what every lane trains, at a world size."""
    ranks = [
        Stream(dataset, config, seed=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for stream in ranks:
        stream.start(0)
    trace = []
    while True:
        steps = [stream.next_step() for stream in ranks]
        assert len({len(step.micro) for step in steps}) == 1  # as many micro-batches everywhere
        if not sum(step.segments for step in steps):
            break
        lanes: dict[int, object] = {}
        for step in steps:
            for micro in step.micro:
                if micro.batch.targets.any():
                    lanes[micro.lane] = (micro.batch.items.tolist(), micro.batch.targets.tolist())
        trace.append(lanes)
    for stream in ranks:
        stream.close()
    return trace


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_a_step_is_the_same_at_every_world_size(small_set: Dataset, world_size: int) -> None:
    config = StreamConfig(window=Window(length=8), lanes=5, lane_tokens=50, shuffle_members=4)
    assert lane_trace(small_set, config, world_size) == lane_trace(small_set, config, 1)


@settings(deadline=None, max_examples=20)
@given(taken=st.integers(0, 30), resumed_world=st.integers(1, 3))
def test_resume_goes_on_where_it_stopped(
    small_set: Dataset, taken: int, resumed_world: int
) -> None:
    config = StreamConfig(window=Window(length=8), lanes=3, lane_tokens=40, shuffle_members=4)
    whole = Stream(small_set, config, seed=7, rank=0, world_size=1)
    whole.start(0)
    before = [segments_in(whole.next_step()) for _ in range(taken)]
    positions = dict(whole.positions)
    after = []
    while (step := whole.next_step()).segments:
        after.append(Counter(segments_in(step)))
    whole.close()
    ranks = [
        Stream(small_set, config, seed=7, rank=rank, world_size=resumed_world)
        for rank in range(resumed_world)
    ]
    for stream in ranks:
        stream.start(0, positions)
    resumed = []
    while any(steps := [stream.next_step() for stream in ranks]) and sum(
        step.segments for step in steps
    ):
        resumed.append(Counter(s for step in steps for s in segments_in(step)))
    for stream in ranks:
        stream.close()
    assert resumed == after
    assert sum(len(s) for s in before) + sum(c.total() for c in resumed) == expected_total(
        small_set, config.window
    )


def expected_total(dataset: Dataset, window: Window) -> int:
    return sum(
        len(by_hand(int(n), window))
        for member in range(len(dataset))
        for n in dataset.read(member).splits[:, 0]
    )


def test_digests_of_an_epoch_do_not_depend_on_the_world(small_set: Dataset) -> None:
    config = StreamConfig(window=Window(length=8), lanes=4, lane_tokens=50, shuffle_members=4)

    def digest(world_size: int) -> int:
        total = 0
        for rank in range(world_size):
            stream = Stream(small_set, config, seed=2, rank=rank, world_size=world_size)
            total += sum(step.digest for step in steps_of(stream, 0))
        return total % 2**48

    assert digest(1) == digest(2) == digest(4)


def test_more_workers_than_lanes_are_refused(small_set: Dataset) -> None:
    with pytest.raises(LonghaulError, match=r"3 workers cannot share 2 lanes: set data\.lanes"):
        Stream(small_set, StreamConfig(lanes=2), seed=0, rank=0, world_size=3)


def test_a_window_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"window\.length 200 does not fit lane_tokens 100"):
        StreamConfig(window=Window(length=200), lane_tokens=100)


def damage(url: str, position: int, change: bytes | None) -> None:
    shard = next(Path(url, "shards").iterdir())
    content = bytearray(shard.read_bytes())
    if change is None:
        del content[position:]
    else:
        content[position : position + len(change)] = change
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, r"member \S+ of .*/shards/\S+\.tar is cut short"),
        (b"\xff", r"member \S+ of .*/shards/\S+\.tar is damaged"),
    ],
)
def test_damage_is_told_with_shard_and_member(
    tmp_path: Path, change: bytes | None, told: str
) -> None:
    dataset = prepare_histories(random_histories(50, 20, seed=0), tmp_path)
    middle = int(dataset.start[len(dataset) // 2]) + 600
    damage(dataset.url, middle, change)
    stream = Stream(dataset, StreamConfig(), seed=0, rank=0, world_size=1)
    with pytest.raises(LonghaulError, match=told):
        steps_of(stream, 0)
    stream.close()


def test_a_foreign_index_is_refused(tmp_path: Path) -> None:
    dataset = prepare_histories(random_histories(50, 20, seed=0), tmp_path / "a")
    other = prepare_histories(random_histories(50, 20, seed=1), tmp_path / "b")
    Path(dataset.url, "index.parquet").write_bytes(Path(other.url, "index.parquet").read_bytes())
    with pytest.raises(LonghaulError, match=r"index\.parquet is not the index that manifest"):
        open_dataset(dataset.url)
