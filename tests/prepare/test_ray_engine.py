"""Preparation on a Ray cluster: the bytes of the embedded engine, whatever node is lost."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare import PrepareOptions, prepare
from tests.cluster.ray_nodes import RayNodes
from tests.prepare.test_engine import FILTERS, contents, log, options
from tests.train.runs import ROOT, environment, wait_until

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]

# Everything is cut small, and there are more tasks than fit at a time.
SCRIPT = """
import json, sys
import ray
from pipeline.errors import LonghaulError
from pipeline.prepare import PrepareOptions, engine, prepare, read
ray.init(log_to_driver=False, logging_level="ERROR")
read.PIECE_ROWS, engine.TASK_ROWS = 300, 300
engine.partition_count = lambda pieces, memory: 8
for wanted in json.loads(sys.argv[1]):
    try:
        prepare(PrepareOptions(**wanted))
        print("SAID null")
    except LonghaulError as error:
        print("SAID", json.dumps(str(error)))
"""


def free_port() -> int:
    """A port that nobody listens on: another process may run tests of this file beside us."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head with room for one task, and a node with room for one."""
    cluster = RayNodes(port=free_port(), head_cpus=1)
    cluster.add("a")
    yield cluster
    cluster.stop()


def start(nodes: RayNodes, *wanted: PrepareOptions, **env: str) -> "subprocess.Popen[str]":
    documents = [json.loads(each.model_dump_json(exclude_unset=True)) for each in wanted]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(documents)],
        env=nodes.env | env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> list[str | None]:
    """Of each preparation what was wrong, or None."""
    told, complaints = process.communicate()
    assert process.returncode == 0, complaints
    lines = [line for line in told.splitlines() if line.startswith("SAID ")]  # not Ray's
    return [json.loads(line.removeprefix("SAID ")) for line in lines]


def on_ray(wanted: PrepareOptions, output: str) -> PrepareOptions:
    given = wanted.model_dump(exclude_unset=True)
    return PrepareOptions(**given | {"output": output, "engine": "ray", "memory": "2GiB"})


def test_the_bytes_are_those_of_the_embedded_engine(nodes: RayNodes, tmp_path: Path) -> None:
    wanted = {}
    for number, filters in enumerate(FILTERS):
        folder = tmp_path / f"log-{number}"
        folder.mkdir()
        urls = log(folder, strings=number % 2 == 0)
        wanted[str(number)] = options(urls, tmp_path / "none", **filters)
    asked = [on_ray(each, f"{tmp_path}/ray/{name}") for name, each in wanted.items()]
    assert said(start(nodes, *asked)) == [None] * len(asked)
    for name, each in wanted.items():
        prepare(each.model_copy(update={"output": f"{tmp_path}/here/{name}"}))
    assert contents(f"{tmp_path}/ray") == contents(f"{tmp_path}/here")


@pytest.mark.slow
def test_a_set_is_extended_the_same_way(nodes: RayNodes, tmp_path: Path) -> None:
    first, *rest = log(tmp_path, strings=False)
    filters: dict[str, Any] = {"repeats": "consecutive", "min_item_events": 3}
    prepare(options([first], tmp_path / "base", **filters))
    more = PrepareOptions(inputs=rest, output=f"{tmp_path}/here", append=f"{tmp_path}/base")
    assert said(start(nodes, on_ray(more, f"{tmp_path}/ray"))) == [None]
    prepare(more)
    assert contents(f"{tmp_path}/ray") == contents(f"{tmp_path}/here")


def test_what_is_wrong_is_said_in_the_same_words(nodes: RayNodes, tmp_path: Path) -> None:
    files = {
        "short.csv": "user,item,time\n1,2,3\n4\n",
        "none.csv": "user,item,time\n",
        "late.csv": "user,item,time\n1,2,3\n1,2,x\n",
    }
    asked, here = [], []
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        one = PrepareOptions(
            inputs=[f"{tmp_path}/{name}"], output=f"{tmp_path}/{name}.out", timestamp="time"
        )
        with pytest.raises(LonghaulError) as refused:
            prepare(one)
        here.append(str(refused.value))
        asked.append(on_ray(one, one.output))
    assert said(start(nodes, *asked)) == here
    assert not list(tmp_path.glob("*.out"))


def test_integers_that_turn_out_to_be_strings(nodes: RayNodes, tmp_path: Path) -> None:
    rows = "".join(f"{n % 90},{n % 7}\n" for n in range(2_000))
    (tmp_path / "a.csv").write_text(f"user,item\n{rows}")
    (tmp_path / "b.csv").write_text("user,item\n5,x\n")
    wanted = PrepareOptions(inputs=[f"{tmp_path}/*.csv"], output=f"{tmp_path}/here")
    assert said(start(nodes, on_ray(wanted, f"{tmp_path}/ray"))) == [None]
    prepare(wanted)
    assert contents(f"{tmp_path}/ray") == contents(f"{tmp_path}/here")


def test_everything_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    """The work folder too, in which nodes find each other's runs."""
    wanted = options(log(tmp_path, strings=True), tmp_path / "here", **FILTERS[2])
    nodes = RayNodes(port=free_port(), head_cpus=2)  # which know of the bucket
    try:
        assert said(start(nodes, on_ray(wanted, f"{bucket}/ray"))) == [None]
    finally:
        nodes.stop()
    prepare(wanted)
    found = {
        name: storage.read_bytes(f"{bucket}/ray/{name}")
        for name in storage.files_below(f"{bucket}/ray")
    }
    assert found == contents(f"{tmp_path}/here")


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("deal-00005", id="reading"),
        pytest.param("00001-of-00008", id="sorting", marks=pytest.mark.slow),
        pytest.param("shard-00002", id="writing", marks=pytest.mark.slow),
    ],
)
def test_a_node_is_lost_in_the_middle(record: str, nodes: RayNodes, tmp_path: Path) -> None:
    small = {"shard_bytes": 700}  # many of them, which take a while
    wanted = options(log(tmp_path, strings=False), tmp_path / "here", **FILTERS[1] | small)
    nodes.add("b")
    process = start(nodes, on_ray(wanted, f"{tmp_path}/ray"))
    wait_until((tmp_path / "ray/.work/done" / f"{record}.json").exists, process)
    nodes.lose("b")
    assert said(process) == [None]
    prepare(wanted)
    assert contents(f"{tmp_path}/ray") == contents(f"{tmp_path}/here")


@pytest.mark.slow
def test_a_killed_driver_goes_on(nodes: RayNodes, tmp_path: Path) -> None:
    wanted = options(log(tmp_path, strings=False), tmp_path / "here", **FILTERS[2])
    done = tmp_path / "ray/.work/done"
    for record in ("deal-00003", "00002-of-00008", "shard-00001"):
        process = start(nodes, on_ray(wanted, f"{tmp_path}/ray"))
        wait_until((done / f"{record}.json").exists, process)
        process.kill()
        process.communicate()
    assert said(start(nodes, on_ray(wanted, f"{tmp_path}/ray"))) == [None]
    prepare(wanted)
    assert contents(f"{tmp_path}/ray") == contents(f"{tmp_path}/here")


@pytest.mark.slow
def test_the_command_starts_a_ray_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{n % 20} {n % 7}\n" for n in range(400)))
    command = [sys.executable, "-m", "pipeline", "prepare", f"{tmp_path}/log.txt"]
    subprocess.run(
        [*command, "--output", f"{tmp_path}/ray", "--engine", "ray"],
        env=environment(),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    prepare(PrepareOptions(inputs=[f"{tmp_path}/log.txt"], output=f"{tmp_path}/here"))
    pages = {"card.html"}
    found = {n: c for n, c in contents(f"{tmp_path}/ray").items() if n not in pages}
    assert found == contents(f"{tmp_path}/here")
