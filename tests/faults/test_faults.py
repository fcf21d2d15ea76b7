"""A small part of the fault campaign; all of it is benchmarks/faults.py."""

from pathlib import Path

import pytest

from pipeline.manifest import Dataset
from tests.faults.campaign import SETTINGS, Campaign
from tests.faulty_s3 import FaultyS3


@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        (0, ["SIGKILL", "full disk", "frozen", "SIGTERM"]),
        (0, ["flipped byte", "missing commit"]),
        pytest.param(2, ["SIGKILL"], marks=pytest.mark.slow),
        pytest.param(3, ["SIGKILL"], marks=pytest.mark.slow),
        (5, ["SIGTERM", "SIGKILL"]),
    ],
)
def test_a_hurt_run_ends_as_if_nothing_had_happened(
    small_set: Dataset,
    tmp_path: Path,
    s3_server: FaultyS3,
    bucket: str,
    setting: int,
    kinds: list[str],
) -> None:
    campaign = Campaign(small_set, tmp_path, s3_server, bucket)
    outcome = campaign.case(SETTINGS[setting], kinds, seed=3)
    assert outcome.survived, outcome
    assert outcome.injected, "nothing happened"
