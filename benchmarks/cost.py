"""What a compiled program costs: its products, its collectives, and the time that they would take.

Nothing here runs a program. Times are predictions of a roofline: no chip named here was measured.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Chip:
    """The published peaks of a device.

    Attributes:
        flops: a second, of dense bfloat16 products.
        memory: bytes.
        bandwidth: of its memory, bytes a second.
        link: bytes a second that it can send to its neighbours, over all its links together.
        host: how many of them a host has.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    host: int


CHIPS = {
    # https://docs.cloud.google.com/tpu/docs/v5e: links of 1600 Gbit/s, 400 GB/s in both directions;
    # slices of several hosts have 4 chips on each.
    "TPU v5e": Chip(197e12, 16e9, 819e9, 200e9, host=4),
    # https://www.nvidia.com/en-us/data-center/h100, SXM: 1,979 TFLOP/s are with sparsity, and 900
    # GB/s of NVLink in both directions.
    "H100": Chip(989e12, 80e9, 3.35e12, 450e9, host=8),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf: sums
    # in float32. It has no NVLink.
    "RTX 4090": Chip(165.2e12, 24e9, 1.008e12, math.inf, host=1),
}


@dataclasses.dataclass(frozen=True)
class Share:
    """What share of a chip's peaks a program is taken to reach."""

    flops: float
    bandwidth: float
    link: float
    overlapped: bool  # Whether devices compute while they communicate.


BOUND = Share(1.0, 1.0, 1.0, overlapped=True)
CAUTIOUS = Share(0.4, 0.7, 0.5, overlapped=False)


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: one of `KINDS`.
        sizes: bytes of each array that it takes or makes on a device, whichever is the larger.
        devices: that take part in one exchange.
        times: that it runs in a step.
    """

    kind: str
    sizes: Sequence[int]
    devices: int
    times: int

    @property
    def size(self) -> int:
        """Bytes of all its arrays on a device in a step."""
        return self.times * sum(self.sizes)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, round a ring."""
        if self.kind == "collective-permute":
            return self.size
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.size * (self.devices - 1) / self.devices


def step_seconds(
    flops: float, accessed: float, collectives: Iterable[Collective], chip: Chip, share: Share
) -> float:
    """Predicts the time of a step: of products or of memory, whichever is longer, and of links."""
    computing = max(
        flops / (chip.flops * share.flops), accessed / (chip.bandwidth * share.bandwidth)
    )
    sending = sum(it.sent for it in collectives) / (chip.link * share.link)
    return max(computing, sending) if share.overlapped else computing + sending


def products(jaxpr: Any) -> float:
    """Counts the FLOPs of a traced program's matrix products, on all devices together.

    XLA's own count takes the body of a loop once; here it counts as often as it runs.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, how = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = how["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2.0 * summed * math.prod(equation.outvars[0].aval.shape)
        times = how["length"] if name == "scan" else 1
        if name == "shard_map":
            times = how["mesh"].size
        inner = [it for it in jax.tree.leaves(list(how.values())) if hasattr(it, "eqns")]
        total += times * sum(map(products, inner))
    return total


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of a compiled program, `compiled.as_text()`.

    Those in loops count as often as the loop runs. Of an asynchronous pair the start counts. Sizes
    are those of the operands, which look the same in both. The compiler for TPUs writes an
    asynchronous collective into each of the fusions that bear a part of it, under one `chain_id`,
    and a reduce-scatter as a fusion of that name around an all-reduce.

    Raises:
        ValueError: a loop with a collective does not tell how often it runs, or a collective not
            between which devices.
    """
    bodies, entry = _computations(text)
    found: list[Collective] = []
    chains: set[str] = set()

    def walk(name: str, times: int | None) -> None:
        sizes: dict[str, int] = {}
        for line in bodies[name]:
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, types, operation, rest = match.groups()
            sizes[result] = _size(types)
            kind = operation.removesuffix("-start")
            chain = re.search(r'chain_id="(\d+)"', rest)
            if kind in KINDS and not (chain and chain[1] in chains):
                if chain:
                    chains.add(chain[1])
                if name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                if times is None:
                    raise ValueError(f"a loop of unknown length holds {line.strip()[:200]}")
                devices = _group_size(kind, rest)
                grows = devices if kind == "all-gather" else 1
                operands = _NAME.findall(rest.partition(")")[0])
                found.append(
                    Collective(kind, [grows * sizes[it] for it in operands], devices, times)
                )
            inner = times
            if operation == "while" and times is not None:
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
                inner = times * int(trips[1]) if trips else None
            for called in _CALLED.findall(rest):
                for it in _NAME.findall(called):
                    walk(it, inner)

    walk(entry, 1)
    return found


# %name = type operation(operands), attributes; a type holds no space before a parenthesis.
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_NAME = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|branch_computations|called_computations)="
    r"(%[\w.-]+|\{[^}]*\})"
)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line)
        if head:
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif bodies:
            lines.append(line)
    return bodies, entry


def _size(types: str) -> int:
    """Returns the bytes of an array, or of a tuple's arrays together."""
    total = 0
    for dtype, shape in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", types):
        bits = re.search(r"\d+", dtype)  # None of `pred`, and of `token`, which is no array.
        width = int(bits[0]) // 8 if bits else int(dtype == "pred")
        total += width * math.prod(map(int, filter(None, shape.split(","))))
    return total


def _group_size(kind: str, rest: str) -> int:
    """Returns how many devices exchange with each other, from any of the ways to write groups."""
    if kind == "collective-permute":
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(counted[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", meshed[1]))
        return math.prod(int(sizes[axis]) for axis in meshed[2].replace(" ", "").split(","))
    raise ValueError(f"unknown form of groups: {kind}({rest[:300]}")
