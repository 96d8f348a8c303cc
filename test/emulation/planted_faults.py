"""Plants one fault after the other in the CUDA kernels and shows that their tests notice it.

Run with pytest. Each fault is a text of a kernel's source, which must occur exactly once, and what
stands there instead. A small set of kernels is built from the changed sources for each.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc/kernels"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas"]
SANITISED = ["-g1", "-fsanitize=address"]
EMULATION = [
    ROOT / "test/emulation" / f"{name}.cpp"
    for name in ("collectives", "machine", "matrix", "memory")
]
PROBLEMS = [
    ROOT / "test/cpp/kernels" / f"attention_{name}.cpp"
    for name in ("call", "gradient_oracle", "oracle", "problem")
]
TESTS = ROOT / "test/emulation/faults"
FORWARD, BACKWARD = KERNELS / "cuda/attention.cu", KERNELS / "cuda/backward.cu"


@dataclass(frozen=True)
class Program:
    """A test program: what is built from the changed sources for each fault, and what once."""

    changed: tuple[Path, ...]
    unchanged: tuple[Path, ...]


OF_ATTENTION = Program((TESTS / "forward.cpp", FORWARD), (TESTS / "kernels_test.cpp",))
OF_GRADIENTS = Program((TESTS / "backward_test.cpp", BACKWARD), ())

LOADS, ATTEND, SCORES, COMBINE, TILE, GRADIENTS = (
    f"cuda/{name}"
    for name in (
        "loads.cuh",
        "attend.cuh",
        "scores.cuh",
        "combine.cuh",
        "tile.h",
        "backward.cuh",
    )
)
WAIT = "cp_async_wait<Tile::kStages - 2>();"
RACE, WRONG = "without a barrier", "which exceeds|evaluates to nan"


@dataclass
class Fault:
    name: str
    file: str
    text: str
    instead: str
    report: str  # a pattern that the failing tests print
    sanitised: bool = False  # only AddressSanitizer sees it
    program: Program = OF_ATTENTION


FAULTS = [
    Fault("no wait for copies", ATTEND, WAIT, "", "copies in flight|which exceeds"),
    Fault("wait for too few copies", ATTEND, WAIT, WAIT.replace("2", "1"), "copies in flight"),
    Fault("no barrier of the warp", ATTEND, "sync_warp();", "", RACE),
    Fault("no barrier of the block", ATTEND, "sync_block();", "", RACE),
    Fault(
        "stage reused too early",
        ATTEND,
        "fetch(tile + Tile::kStages - 1);",
        "fetch(tile + Tile::kStages);",
        "which exceeds|without a barrier",
    ),
    Fault(
        "barrier after the fetch",
        ATTEND,
        "    if constexpr (kOneWarp) {\n      sync_warp();",
        "    fetch(tile + Tile::kStages - 1);\n    if constexpr (kOneWarp) {\n      sync_warp();",
        "which exceeds|without a barrier",
    ),
    Fault(
        "no swizzle",
        TILE,
        "((chunk ^ swizzle) << 4)",
        "((chunk ^ (swizzle & 0)) << 4)",
        "bank_conflicts",
    ),
    Fault(
        "another swizzle for copies",
        LOADS,
        "const int to = address + chunk_at<kBytes>(row, own_chunk);",
        "const int to = address + chunk_at<kBytes>(row & ~1, own_chunk) + (row & 1) * kBytes;",
        WRONG,
    ),
    Fault("one key too many", SCORES, "key >= end) scores", "key > end) scores", WRONG),
    Fault("one key too few", SCORES, "key < begin ||", "key <= begin ||", WRONG),
    Fault("last tile not masked", ATTEND, "key + Tile::kKeys > by_first.end", "false", WRONG),
    Fault(
        "slots beyond the end are read",
        LOADS,
        "slot < first_ || slot >= end_",
        "slot < first_ || slot >= end_ + 1",
        "heap-buffer-overflow",
        sanitised=True,
    ),
    Fault(
        "a tile beyond the end is read",
        LOADS,
        "slot < first_ || slot >= end_",
        "slot < first_ || slot >= end_ + Tile::kKeys",
        "heap-buffer-overflow",
        sanitised=True,
    ),
    Fault(
        "no zeros beyond a row's width",
        LOADS,
        "from + chunk * kElements, chunk * kElements < left);",
        "from + chunk * kElements, true);",
        WRONG,
    ),
    Fault(
        "swizzle of short rows only",
        TILE,
        "return (at ^ low << 4) + ((chunks - low) << 4);",
        "return at ^ low << 4;",
        WRONG,
    ),
    Fault(
        "page of another slot",
        ATTEND,
        "loader.look_up(tile + 1);",
        "loader.look_up(tile);",
        WRONG,
    ),
    Fault(
        "scale of another key",
        SCORES,
        "(8 * n + 2 * (lane_index() & 3)) * 4",
        "(8 * n + (2 * lane_index() + 2 & 6)) * 4",
        WRONG,
    ),
    Fault("sum of half the keys", ATTEND, "sum += shfl_xor(sum, 2);", "", WRONG),
    Fault(
        "half a warp in a shuffle",
        ATTEND,
        "sum += shfl_xor(sum, 2);",
        "if (lane_index() < 16) sum += shfl_xor(sum, 2);",
        "divergent warp|never come",
    ),
    Fault(
        "chunk not cleared", ATTEND, "if (tile + 1 < tiles_end) clear<Tile>(out, rows);", "", WRONG
    ),
    Fault(
        "last chunk not folded",
        COMBINE,
        "part * a.part_chunks < end_chunk;",
        "part + 1 < end_chunk;",
        WRONG,
    ),
    Fault(
        "chunks folded in another order",
        COMBINE,
        "int64_t{group} * parts + i;",
        "int64_t{group} * parts + (i < parts ? parts - 1 - i : i);",
        "bits of row",
    ),
    Fault("no barrier before groups are folded", COMBINE, "sync_block();", "", RACE),
    Fault(
        "shared memory for one stage less",
        TILE,
        "kTotals = kQueryBytes + kStages * kStageBytes;",
        "kTotals = kQueryBytes + (kStages - 1) * kStageBytes;",
        "leaves shared memory|without a barrier",
    ),
    *(
        Fault(*fault, program=OF_GRADIENTS)
        for fault in (
            ("no barrier before a stage is filled", GRADIENTS, "sync_block();", "", RACE),
            (
                "no wait for the streamed tile",
                GRADIENTS,
                "cp_async_wait<0>();\n    sync_block();",
                "sync_block();",
                "copies in flight|which exceeds",
            ),
            (
                "facts of the rows behind the stages' end",
                GRADIENTS,
                "kSmemBytes = kRows + kMostRows * 16;",
                "kSmemBytes = kRows + kMostRows * 8;",
                "leaves shared memory",
            ),
            (
                "keys that some rows do not see",
                GRADIENTS,
                "bool sees = key >= known.begin && key < known.end;",
                "bool sees = key >= known.begin;",
                WRONG,
            ),
            (
                "last segment left out",
                GRADIENTS,
                "segment < a.segments; ++segment) {",
                "segment + 1 < a.segments; ++segment) {",
                WRONG,
            ),
            (
                "a segment's tiles one by one",
                GRADIENTS,
                "return find(tile + a.segments);",
                "return find(tile + 1);",
                WRONG,
            ),
            (
                "softcap's derivative",
                GRADIENTS,
                "slope = 1 - t * t;",
                "slope = 1 - t;",
                WRONG,
            ),
        )
    ),
]


def run(command: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(x) for x in command], capture_output=True, text=True)


def compile_to(target: Path, flags: list[object]) -> None:
    launcher = ["ccache"] if shutil.which("ccache") else []
    done = run([*launcher, COMPILER, *FLAGS, *flags, "-o", target])
    assert done.returncode == 0, done.stderr


def compile_object(source: Path, csrc: Path, target: Path, sanitised: bool) -> None:
    flags = SANITISED if sanitised else []
    compile_to(target, [*flags, *include(csrc), "-c", "-x", "c++", source])


def include(csrc: Path) -> list[object]:
    # kernels/attention_call.h is the tests'; the emulation includes kernels/numeric.h.
    return [f"-I{csrc}", f"-I{ROOT / 'test/emulation'}", f"-I{ROOT / 'test/cpp'}"]


class Builds:
    """What faults do not change is built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects: dict[tuple[Path, bool], Path] = {}

    def object(self, source: Path, sanitised: bool) -> Path:
        if (source, sanitised) not in self._objects:
            target = self.folder / f"{source.stem}{source.suffix[1:]}{sanitised}.o"
            compile_object(source, ROOT / "csrc", target, sanitised)
            self._objects[source, sanitised] = target
        return self._objects[source, sanitised]

    def test(
        self, csrc: Path, sanitised: bool, program: Program
    ) -> subprocess.CompletedProcess[str]:
        """Builds a program with the kernels of `csrc` and runs it."""
        objects = [
            self.object(source, sanitised) for source in (*EMULATION, *PROBLEMS, *program.unchanged)
        ]
        for source in program.changed:
            changed = (
                csrc / source.relative_to(ROOT / "csrc") if KERNELS in source.parents else source
            )
            objects.append(csrc / f"{source.stem}{source.suffix[1:]}.o")
            compile_object(changed, csrc, objects[-1], sanitised)
        target = csrc / "test_program"
        flags = SANITISED if sanitised else []
        compile_to(target, [*flags, *objects, "-lgtest", "-lgtest_main"])
        return run([target])


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("objects"))


def copy_kernels(folder: Path) -> Path:
    shutil.copytree(KERNELS, folder / "csrc/kernels", ignore=shutil.ignore_patterns("cpu"))
    return folder / "csrc"


@pytest.mark.parametrize("program", [OF_ATTENTION, OF_GRADIENTS])
def test_without_a_fault(program: Program, builds: Builds, tmp_path: Path) -> None:
    for sanitised in (False, True):
        done = builds.test(copy_kernels(tmp_path / str(sanitised)), sanitised, program)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_noticed(fault: Fault, builds: Builds, tmp_path: Path) -> None:
    csrc = copy_kernels(tmp_path)
    path = csrc / "kernels" / fault.file
    source = path.read_text()
    assert source.count(fault.text) == 1
    path.write_text(source.replace(fault.text, fault.instead))
    done = builds.test(csrc, fault.sanitised, fault.program)
    assert done.returncode != 0
    assert re.search(fault.report, done.stdout + done.stderr), done.stdout + done.stderr


CUDA_NAMES = re.compile(
    r"\b(?:threadIdx|blockIdx|blockDim|gridDim|warpSize|dim3|__[A-Za-z]\w*|asm|cuda[A-Z]\w*"
    r"|atomic[A-Z]\w*|half2|nv_\w+|clock64|cooperative_groups|nvcuda)\b"
    r"|<<<|#include\s*<(?:cuda|mma|cooperative)\w*"
)


@pytest.mark.parametrize("path", sorted(KERNELS.glob("cuda/*")), ids=lambda path: path.name)
def test_only_device_cuh_knows_cuda(path: Path) -> None:
    if path.name == "device.cuh":
        return
    code = re.sub(r"//.*", "", path.read_text())
    assert CUDA_NAMES.findall(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "threadIdx.x",
        "__shared__ float x[3];",
        "__syncthreads();",
        "__nv_bfloat16 x;",
        "__half x;",
        "#ifdef __CUDACC__",
        'asm volatile("");',
        "cudaMalloc(&x, 1);",
        "dim3 grid;",
        "atomicAdd(x, 1);",
        "kernel<<<1, 32>>>();",
        "#include <cuda_fp16.h>",
        "#include <mma.h>",
        "half2 x;",
    ],
)
def test_cuda_names_are_recognised(code: str) -> None:
    assert CUDA_NAMES.search(code)


def test_other_names_are_allowed() -> None:
    assert not CUDA_NAMES.search(
        "namespace mqa::kernels::cuda { int half = 1 << 2; KERNEL(32) f(); }"
    )
