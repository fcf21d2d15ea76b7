"""What a cluster's machines can do, and how much of that is reached: for ``longhaul plan``.

Presets hold the vendors' figures, without sparsity. They are peaks: ``Reached`` says which share of
a peak the parts of a step come to, and where that is known from.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, PositiveFloat

from pipeline.mistakes import nearest


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reached(_Part):
    """The coefficients of the cost model: shares of a peak, and seconds of a launch."""

    source: str = Field("given in the specification", description="where they are from")
    products: PositiveFloat = Field(description="of FLOP/s, in the trunk's matrix products")
    mixing: PositiveFloat = Field(description="of FLOP/s, in attention, recurrences and the like")
    softmax: PositiveFloat = Field(description="of FLOP/s, in the loss's scores and gradients")
    passes: PositiveFloat = Field(description="of bandwidth, where memory is gone through in order")
    rows: PositiveFloat = Field(description="of bandwidth, where rows are gathered or scattered")
    links: PositiveFloat = Field(description="of the links' bandwidth, in collectives")
    launch: float = Field(ge=0, description="seconds that an operation takes beside its work")


class Link(_Part):
    """A way between workers. Bandwidth is of each direction."""

    bandwidth: ByteSize = Field(gt=0, description="bytes a second, as 450GB")
    latency: float = Field(1e-5, ge=0, description="seconds of a message")


class Device(_Part):
    """What a worker computes on: a GPU, or a core of a CPU."""

    name: str
    gpu: bool = True
    fp32: PositiveFloat = Field(description="FLOP/s of matrix products in fp32")
    bf16: PositiveFloat = Field(description="FLOP/s of matrix products in bf16")
    bandwidth: ByteSize = Field(gt=0, description="of its memory, bytes a second, as 3.35TB")
    memory: ByteSize | None = Field(None, description="of its own; null: it uses the node's")
    reached: Reached


class Store(_Part):
    """Where data sets and checkpoints lie, as a node sees it."""

    read: ByteSize = Field(ByteSize(10**9), gt=0, description="bytes a second")
    write: ByteSize = Field(ByteSize(5 * 10**8), gt=0, description="bytes a second")


class Host(_Part):
    """The machine around a GPU, as one worker has it."""

    link: ByteSize = Field(ByteSize(25 * 10**9), gt=0, description="to the GPU, bytes a second")
    bandwidth: ByteSize = Field(
        ByteSize(20 * 10**9), gt=0, description="of the host's memory, bytes a second"
    )


_GPU = Reached(
    source="assumed, never measured",
    products=0.4,
    mixing=0.05,
    softmax=0.4,
    passes=0.7,
    rows=0.3,
    links=0.7,
    launch=5e-6,
)
_CPU = Reached(
    source="fitted by benchmarks/scaling.py to two cores of an AMD EPYC with AVX-512",
    products=0.93,
    mixing=0.097,
    softmax=0.62,
    passes=0.18,
    rows=0.28,
    links=0.55,
    launch=9.6e-6,
)


def _gpu(name: str, fp32: float, bf16: float, bandwidth: float, memory: float) -> Device:
    """In TFLOP/s, TB/s and GB."""
    return Device(
        name=name,
        fp32=fp32 * 1e12,
        bf16=bf16 * 1e12,
        bandwidth=ByteSize(round(bandwidth * 1e12)),
        memory=ByteSize(round(memory * 1e9)),
        reached=_GPU,
    )


DEVICES = {
    # SXM forms; fp32 without TF32, which torch does not use unless it is told to.
    "a100": _gpu("a100", 19.5, 312, 2.039, 80),
    "h100": _gpu("h100", 67, 989, 3.35, 80),
    "h200": _gpu("h200", 67, 989, 4.8, 141),
    "b200": _gpu("b200", 75, 2250, 8.0, 180),
    "l4": _gpu("l4", 30.3, 121, 0.3, 24),
    # A core of the AMD EPYC that the project is developed on: its best matrix product, its copies.
    "cpu": Device(
        name="cpu",
        gpu=False,
        fp32=210e9,
        bf16=400e9,
        bandwidth=ByteSize(31 * 10**9),
        reached=_CPU,
    ),
}
_INSIDE = {
    "a100": Link(bandwidth=ByteSize(300 * 10**9)),
    "h100": Link(bandwidth=ByteSize(450 * 10**9)),
    "h200": Link(bandwidth=ByteSize(450 * 10**9)),
    "b200": Link(bandwidth=ByteSize(900 * 10**9)),
    "l4": Link(bandwidth=ByteSize(25 * 10**9)),  # PCIe
    "cpu": Link(bandwidth=ByteSize(2 * 10**9), latency=1e-4),  # gloo over the loopback
}
_BETWEEN_GPUS = Link(bandwidth=ByteSize(50 * 10**9), latency=2e-5)  # a card of 400 Gbit/s
_BETWEEN_CPUS = Link(bandwidth=ByteSize(1_250 * 10**6), latency=1e-4)  # 10 Gbit/s


def _device(value: Any) -> Any:
    """A preset by its name, or with ``like`` a changed one."""
    if isinstance(value, str):
        return _preset(value)
    if not isinstance(value, dict) or "like" not in value:
        return value
    value = dict(value)
    base = _preset(value.pop("like")).model_dump()
    if isinstance(value.get("reached"), dict):
        source = f"given in the specification, the others {base['reached']['source']}"
        value["reached"] = base["reached"] | {"source": source} | value["reached"]
    return base | value


def _preset(name: Any) -> Device:
    if name not in DEVICES:
        raise ValueError(f"no device is called {name!r}{nearest(str(name), list(DEVICES))}")
    return DEVICES[name]


class HardwarePart(_Part):
    """The machines, for ``longhaul plan`` alone."""

    device: Annotated[Device | None, BeforeValidator(_device)] = Field(
        None,
        description="a preset's name, or {like: NAME, ...}, or all figures; null: CPU cores, "
        "where workers have no GPU",
    )
    inside: Link | None = Field(None, description="between workers of a node, of each; null: usual")
    between: Link | None = Field(None, description="between nodes, of each node; null: usual")
    store: Store = Store()
    host: Host = Host()

    def inside_of(self, device: Device) -> Link:
        """The links of a node, those usual for the device where none are given."""
        usual = _INSIDE.get(device.name, _INSIDE["l4" if device.gpu else "cpu"])
        return self.inside or usual

    def between_of(self, device: Device) -> Link:
        """The links between nodes."""
        return self.between or (_BETWEEN_GPUS if device.gpu else _BETWEEN_CPUS)
