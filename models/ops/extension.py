"""Builds and loads the C++ kernels of the operations: one shared library, plain C functions.

The library is compiled with one call of the machine's C++ compiler, without torch's headers, and
called through ctypes on data pointers (which releases the interpreter lock). It lands in the
folder torch uses for extensions, keyed by the sources, the compiler, torch and the processor, and
appears there by an atomic rename: a process killed while building leaves nothing that the next
one could trip over. Where no compiler is found the operations run in eager torch, after one
warning. `LONGHAUL_CPU_KERNELS=0` turns the kernels off.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.cpp_extension import get_default_build_root

log = logging.getLogger(__name__)

FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    # Reductions are written with explicit lanes, so these change no result: -ffast-math would.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
BUILD_TIMEOUT_S = 300


def serves(*tensors: torch.Tensor | None) -> bool:
    """Whether the compiled kernels can take these tensors: CPU, fp32 or bf16.

    An exported graph holds torch's own operations: it has to run without this library.
    """
    if torch.compiler.is_exporting():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    return (
        all(tensor.device.type == "cpu" and tensor.dtype in DTYPE_CODES for tensor in given)
        and available()
    )


def available() -> bool:
    """Whether there are compiled kernels and nobody turned them off."""
    return enabled() and library() is not None


def enabled() -> bool:
    """Whether nobody turned compiled kernels off."""
    return os.environ.get("LONGHAUL_CPU_KERNELS", "1") != "0"


def call(function: str, *arguments: torch.Tensor | np.ndarray | int | float | None) -> int:
    """Calls a kernel; its last argument is always the number of threads torch may use."""
    kernels = library()
    if kernels is None:
        raise RuntimeError("the compiled kernels are not available")
    return invoke(kernels, function, *arguments, torch.get_num_threads())


def invoke(
    kernels: ctypes.CDLL,
    function: str,
    *arguments: torch.Tensor | np.ndarray | int | float | None,
) -> int:
    """Calls a function of a library that ``load`` returned.

    Tensors and arrays pass as data pointers (they must be contiguous), ints as int64, floats as
    double.
    """
    converted: list[object] = []
    for argument in arguments:
        if argument is None:
            converted.append(ctypes.c_void_p(None))
        elif isinstance(argument, torch.Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, np.ndarray):
            converted.append(ctypes.c_void_p(argument.__array_interface__["data"][0]))
        elif isinstance(argument, float):
            converted.append(ctypes.c_double(argument))
        else:
            converted.append(ctypes.c_int64(argument))
    kernel = getattr(kernels, function)
    kernel.restype = ctypes.c_int64
    return int(kernel(*converted))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The operations' library; see ``load``."""
    return load(sources(), "CPU kernels not available, using eager torch")


def load(files: list[Path], otherwise: str) -> ctypes.CDLL | None:
    """A library of these sources, built first where needed; None, and a warning, where it cannot
    be."""
    try:
        return ctypes.CDLL(str(build(files, build_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning("%s (slower): %s", otherwise, detail)
        return None


def sources() -> list[Path]:
    """Every C++ file of the operations, headers included, in a fixed order."""
    folder = Path(__file__).parent
    return sorted([*folder.rglob("*.cpp"), *folder.rglob("*.hpp")])


def build_folder() -> Path:
    """Where the library is kept: TORCH_EXTENSIONS_DIR, else torch's own default."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "longhaul"


def build(files: list[Path], folder: Path) -> Path:
    """The path of the compiled library, which is compiled if this build is not yet there."""
    compiler = find_compiler()
    digest = hashlib.sha256()
    for part in (compiler, *FLAGS, torch.__version__, processor()):
        digest.update(part.encode() + b"\0")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    target = folder / f"kernels-{digest.hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "build.lock"):
        if not target.exists():
            compile_library(compiler, files, target)
    return target


def compile_library(compiler: str, files: list[Path], target: Path) -> None:
    """Compiles beside the target and renames, so that a half-written library is never loaded."""
    handle, draft = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        units = [str(file) for file in files if file.suffix == ".cpp"]
        include = f"-I{Path(__file__).parent}"
        subprocess.run(
            [compiler, *FLAGS, include, *units, "-o", draft],
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        os.replace(draft, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """One builder at a time. The kernel drops the lock when its holder dies, however it dies."""
    with open(path, "w") as handle:
        # A file system without locks only costs a second, equal build.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def find_compiler() -> str:
    """The C++ compiler: $CXX, else the usual names."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise FileNotFoundError("no C++ compiler (set CXX or install g++)")


def processor() -> str:
    """Names what -march=native depends on: a cache on a shared disk may serve several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability} {model} {flags}"
