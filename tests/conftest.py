"""What many tests share: data sets made by the real ``prepare``, real data, a real S3 server."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from tests.faulty_s3 import FaultyS3

# A busy machine is no defect: speed is for benchmarks.
settings.register_profile("longhaul", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("longhaul")

# Read when Triton is first imported, by whomever: its kernels then run without a GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

REAL_DATA = Path(
    os.environ.get("LONGHAUL_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")
)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """The path of a real data file; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = REAL_DATA / name
        if not path.exists():
            pytest.skip(f"real data {name} is not in {REAL_DATA} (set LONGHAUL_TEST_DATA)")
        return path

    return find


def random_histories(users: int, items: int, seed: int, longest: int = 40) -> list[list[int]]:
    """Histories of skewed lengths, 1 to ``longest`` events, over items 1..``items``."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(longest, 1 + rng.geometric(0.12, users))
    return [rng.integers(1, items + 1, n).tolist() for n in lengths]


def prepare_histories(histories: list[list[int]], folder: Path) -> Dataset:
    """A data set of these histories; user ``u`` (counted from 0) has key ``u``."""
    log = folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"{u} {i}\n" for u, items in enumerate(histories) for i in items))
    prepare(PrepareOptions(inputs=[str(log)], output=str(folder / "set")))
    return open_dataset(str(folder / "set"))


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """300 users over 50 items."""
    return prepare_histories(random_histories(300, 50, seed=1), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[FaultyS3]:
    """An S3 server on loopback."""
    server = FaultyS3()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket; child processes find the server by the environment too."""
    import s3fs

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"bucket-{os.urandom(4).hex()}"
    fs.mkdir(name)
    yield f"s3://{name}"
    s3_server.suffer()  # nothing more
    fs.rm(name, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()
