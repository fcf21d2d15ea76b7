"""Building the kernels: cached, atomic, safe in parallel, and optional."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_forms import has_compiler

from models import ops
from models.ops import extension

ROOT = Path(extension.__file__).parents[2]
BUILD = """
import pathlib, sys
from models.ops import extension
extension.build([pathlib.Path(sys.argv[1])], extension.build_folder())
"""

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


@needs_compiler
def test_several_processes_build_once_and_a_dead_builder_is_no_obstacle(tmp_path):
    folder = tmp_path / "longhaul"
    folder.mkdir()
    (folder / "build.lock").touch()
    (folder / "half-written.so").write_bytes(b"\x7fELF")
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int value() { return 1; }')
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    command = [sys.executable, "-c", BUILD, str(source)]
    builders = [subprocess.Popen(command, env=environment, cwd=ROOT) for _ in range(3)]
    assert [builder.wait(timeout=120) for builder in builders] == [0, 0, 0]
    (library,) = folder.glob("kernels-*.so")
    built = library.stat().st_mtime_ns
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    assert library.stat().st_mtime_ns == built


@needs_compiler
def test_a_build_is_keyed_by_its_sources(tmp_path):
    source = tmp_path / "one.cpp"
    paths = []
    for value in (1, 2):
        source.write_text(f'extern "C" int value() {{ return {value}; }}')
        paths.append(extension.build([source], tmp_path))
    assert paths[0] != paths[1]
    assert all(path.exists() for path in paths)


@needs_compiler
def test_a_failed_build_leaves_nothing_behind(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("no C++")
    with pytest.raises(subprocess.CalledProcessError):
        extension.build([source], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.so"))


def test_without_a_compiler_everything_runs_after_one_warning(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    extension.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert ops.dropout(torch.ones(5), 0.5, True).shape == (5,)
    finally:
        extension.library.cache_clear()
    assert len(caplog.records) == 1
    assert "compiler" in caplog.text
