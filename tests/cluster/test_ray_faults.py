"""A small part of the fault campaign on Ray; all of it is benchmarks/faults.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.manifest import Dataset
from tests.cluster.ray_nodes import RayNodes
from tests.faults.ray_campaign import FOR_GOOD, RayCampaign
from tests.faulty_s3 import FaultyS3

pytestmark = pytest.mark.ray


@pytest.fixture
def nodes(bucket: str) -> Iterator[RayNodes]:
    """A cluster whose workers find the server of the bucket."""
    nodes = RayNodes(port=26479)
    yield nodes
    nodes.stop()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind",
    [
        "node drained",
        pytest.param("driver killed", marks=pytest.mark.slow),
        pytest.param(FOR_GOOD, marks=pytest.mark.slow),
    ],
)
def test_nodes_and_drivers_may_go(
    small_set: Dataset,
    tmp_path: Path,
    nodes: RayNodes,
    s3_server: FaultyS3,
    bucket: str,
    kind: str,
) -> None:
    campaign = RayCampaign(small_set, tmp_path, nodes, s3_server, bucket)
    outcome = campaign.case(kind, seed=0)
    assert outcome.survived, outcome
    assert outcome.equal == "bits" or kind == FOR_GOOD
