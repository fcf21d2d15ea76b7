"""A run over several hosts, network namespaces on this machine, one of which is cut off."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.manifest import Dataset
from tests.cluster.cut_host import STEPS, CutHosts
from tests.cluster.hosts import Hosts, may_make_hosts
from tests.cluster.ray_hosts import RayHosts
from tests.faulty_s3 import FaultyS3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not may_make_hosts(), reason="network namespaces need root, ip and unshare"),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Three hosts."""
    with Hosts(tmp_path, "head", "a", "b") as made:
        yield made


@pytest.fixture
def s3_server(hosts: Hosts) -> Iterator[FaultyS3]:
    """An S3 server on the network of the hosts, which is all that they share."""
    server = FaultyS3(hosts.gateway)
    yield server
    server.stop()


@pytest.fixture
def nodes(hosts: Hosts, bucket: str) -> Iterator[RayHosts]:
    """A Ray cluster on the hosts, with room for a worker on each but the head."""
    with RayHosts(hosts, "a", "b") as made:
        yield made


def test_a_run_outlives_the_loss_of_a_host(
    small_set: Dataset, tmp_path: Path, nodes: RayHosts, bucket: str
) -> None:
    runs = CutHosts(small_set, tmp_path, nodes, bucket)

    story = runs.goes_on()
    assert (story.state.state, story.state.step) == ("done", STEPS)
    assert story.state.attempt >= 2  # more where Ray takes the host in again before the end
    assert story.overwritten == []  # what came back with the host found that it was too late
    assert story.exactly_once
    assert story.equal in ("bits", "rounding")
    assert story.metrics == pytest.approx(runs.metrics, abs=0.01)

    story = runs.waits()
    assert (story.state.state, story.state.step, story.state.attempt) == ("done", STEPS, 2)
    assert story.overwritten == []
    assert story.exactly_once
    assert story.equal == "bits"
    assert story.metrics == runs.metrics
