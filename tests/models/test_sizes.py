"""Sizes by name: every model builds at every size, and the counts are right."""

import pytest
import torch

import models
from models import sizes


@pytest.mark.parametrize("name", models.names())
def test_the_largest_trunk_has_about_a_billion_parameters(name: str) -> None:
    found = {size: sizes.profile(name, size, 100, 200) for size in sizes.NAMES}
    trunks = [found[size].trunk for size in sizes.NAMES]
    assert trunks == sorted(trunks)
    assert name == "control" or 0.9e9 < trunks[-1] < 1.1e9
    assert found["xl"].settings.activation_checkpointing


def test_counts_by_hand() -> None:
    found = sizes.profile("lrurec", "small", 3416, 200)
    state = 2 * 256 * 4  # two blocks of 128 complex numbers
    assert found.state_bytes == state
    assert found.parameters - found.trunk == 3417 * 65
    # Four maps a block: 64 to 256 and back, twice; then 8 for each of 128 complex channels.
    assert found.flops == 2 * (2 * 4 * 64 * 256 + 8 * 128)
    assert sizes.profile("bert4rec", "small", 10, 200).state_bytes is None


def test_the_count_of_linear_maps_is_torchs_own() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from tests.models.test_models import packed

    model = models.build(models.config_of("hydrarec")(name="hydrarec", d=16), 20).eval()
    batch = packed([[1, 2, 3, 4]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode(batch)
    maps = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert counter.get_total_flops() == 4 * 2 * maps


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="no size is called 'huge'; there are: tiny, small"):
        sizes.settings("lrurec", "huge")
