"""A small part of the fault campaign on Ray; all of it is benchmarks/faults.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.manifest import Dataset
from tests.cluster.ray_nodes import RayNodes
from tests.faults.ray_campaign import RayCampaign


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    nodes = RayNodes(port=26479)
    yield nodes
    nodes.stop()


@pytest.mark.timeout(900)
def test_nodes_and_drivers_may_go(small_set: Dataset, tmp_path: Path, nodes: RayNodes) -> None:
    campaign = RayCampaign(small_set, tmp_path, nodes)
    for seed, kind in enumerate(["node drained", "driver killed"]):
        outcome = campaign.case(kind, seed)
        assert outcome.survived, outcome
        assert outcome.equal == "bits"
