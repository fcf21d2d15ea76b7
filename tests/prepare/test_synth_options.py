"""Options of the synthetic log: sizes, presets, history lengths, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.prepare.synth import SynthOptions, draw
from pipeline.prepare.synth.files import EVENTS, TRUTH
from pipeline.prepare.synth.randomness import alias_table
from pipeline.prepare.synth.truth import Truth
from pipeline.prepare.synth.users import draw_lengths


@pytest.mark.parametrize(
    "weights",
    [
        *(np.full(size, 0.1) for size in (1, 3, 7, 49)),
        np.array([3.0]),
        np.array([1.0, 0.0, 0.0]),
        1.0 / np.arange(1, 1001),
        np.arange(1, 301) ** -2.5,
        np.repeat([5.0, 1.0], [10, 30]),
    ],
)
def test_alias_tables(weights: np.ndarray) -> None:
    below, other = alias_table(weights)
    keep = below / 2**32
    share = keep + np.bincount(other, 1 - keep, minlength=len(weights))
    np.testing.assert_allclose(share / len(weights), weights / weights.sum(), atol=1e-9)


def test_lengths_follow_their_law() -> None:
    wanted = SynthOptions(users=100_000, events=10_000_000, shortest=3, spread=1.2, days=900)
    lengths = draw_lengths(wanted, np.random.default_rng(0))
    assert lengths.sum() == wanted.events
    assert lengths.min() >= 3
    median, high = np.quantile(lengths - 3, [0.5, 0.8413])
    assert abs(np.log(high / median) - 1.2) < 0.05

    wanted = SynthOptions.model_validate({**wanted.model_dump(), "tail": 2.5})
    lengths = draw_lengths(wanted, np.random.default_rng(0))
    assert lengths.sum() == wanted.events
    assert lengths.min() >= 3
    # Hill's estimate of the exponent from the longest hundredth; Lomax's comes to it far out.
    longest = np.sort(lengths)[-1000:]
    assert abs(1 + 1 / np.log(longest / longest[0]).mean() - 2.5) < 0.2

    wanted = SynthOptions.model_validate({**wanted.model_dump(), "tail": 1.5, "longest": 120})
    lengths = draw_lengths(wanted, np.random.default_rng(0))
    assert lengths.sum() == wanted.events
    assert lengths.max() == 120
    full = SynthOptions.model_validate({**wanted.model_dump(), "events": 12_000_000})
    assert (draw_lengths(full, np.random.default_rng(0)) == 120).all()


def test_slices_are_bounded() -> None:
    for options in (
        SynthOptions(preset="yambda-5b"),
        SynthOptions(users=10_000_000, events=10**11, days=30),
        SynthOptions(users=1_000, events=8_640_000, days=1),
    ):
        a_second = options.events / (options.days * 86_400)
        assert a_second * (draw.slice_seconds(options) - 1) < 2**23


def test_presets() -> None:
    whole = SynthOptions.model_validate({"preset": "yambda-5b"})
    assert (whole.users, whole.items, whole.events) == (1_000_000, 9_390_623, 4_785_859_887)
    lengths = draw_lengths(whole, np.random.default_rng(0))
    assert (lengths.sum(), lengths.max()) == (4_785_859_887, 27_738)
    # Of all events; published of listens, which are 97 % of them: 3,076 and 17,030.
    median, high = np.quantile(lengths, [0.5, 0.95])
    assert abs(median / 3_166 - 1) < 0.15
    assert abs(high / 17_529 - 1) < 0.15
    # The published tenth and hundredth of the users.
    for part, items in ((0.1, 3_004_578), (0.01, 934_057)):
        some = SynthOptions.model_validate({"preset": "yambda-5b", "fraction": part})
        assert some.users == whole.users * part
        assert abs(some.events - whole.events * part) < 1
        assert abs(some.items / items - 1) < 0.02
    least = SynthOptions.model_validate({"preset": "yambda-5b", "fraction": 1e-6, "seed": 3})
    assert (least.users, least.events, least.seed) == (1, 4_786, 3)
    other = SynthOptions.model_validate({"preset": "yambda-5b", "items": 100_000})
    assert (other.items, other.users) == (100_000, 1_000_000)
    assert SynthOptions.model_validate(json.loads(other.model_dump_json())) == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"markov": 0.7, "topical": 0.4}, "together at most 1"),
        ({"events": 10}, "at least users"),
        ({"events": 10**12}, "at most users"),
        ({"topics": 3000}, "topics cannot outnumber"),
        ({"items": 4, "topics": 2}, "fewer than items"),
        ({"shortest": 50, "longest": 20}, "at least shortest"),
        ({"longest": 10**9}, "8,640 a day"),
        ({"fraction": 0.5}, "name one"),
        ({"preset": "yambda-5b", "fraction": 2}, "less than or equal to 1"),
    ],
)
def test_refused_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynthOptions.model_validate(options)


def test_the_command_takes_a_preset_and_what_differs_from_it(tmp_path: Path) -> None:
    given = ["--preset", "yambda-5b", "--fraction", "0.000002", "--topics", "80"]
    said = CliRunner().invoke(app, ["synth", str(tmp_path), *given])
    assert said.exit_code == 0, said.output
    # 80 is the default too, yet it was asked for; days were not.
    options = Truth.load(f"{tmp_path}/{TRUTH}").options
    assert (options.users, options.topics, options.days) == (2, 80, 301)
    assert f"{options.events:,} events of 2 users" in said.output
    assert pq.read_metadata(tmp_path / EVENTS).num_rows == options.events == 9_572
