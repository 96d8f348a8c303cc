"""Calls that are worth it run on all of PyTorch's threads: each in a process that has none yet."""

import subprocess
import sys
from pathlib import Path

import pytest

TASKS = Path("/proc/self/task")
PROGRAM = """
import os, torch, mqa
torch.set_num_threads(3)
query, one = torch.zeros(4, 8, 1, 64), torch.zeros(1, 1, 500, 64)  # filled by one thread
key, caches = one.expand(4, 1, 500, 64), torch.empty(2, 4, 1, 600, 64)
positions = torch.zeros(4, dtype=torch.long)
before = len(os.listdir("/proc/self/task"))
{call}
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not TASKS.exists(), reason="counts threads in /proc")
@pytest.mark.parametrize(
    "call",
    [
        "mqa.attention(query, key, key)",
        "mqa.attention(query[:1], key[:1], key[:1])",  # split over keys
        "mqa.kv_append(caches[0], caches[1], key, key, positions)",
    ],
)
def test_threads_of_pytorch_are_used(call: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    assert int(subprocess.check_output(command)) == 2
