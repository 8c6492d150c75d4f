"""What a process takes, and what its machine leaves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from monai_unet_app import machine_memory
from monai_unet_app.machine_memory import (
    ever_resident_bytes,
    most_resident_bytes,
    resident_bytes,
    taken_by,
)


def test_what_a_piece_of_work_takes_is_its_largest_and_not_what_it_leaves() -> None:
    kept: list[np.ndarray] = []

    def work() -> None:
        np.ones(40_000_000)  # 320 MB, freed at once
        kept.append(np.ones(10_000_000))

    assert 0.31e9 < taken_by(work) < 0.42e9
    assert taken_by(lambda: None) < 5e6


def test_room_that_earlier_work_has_left_counts_as_taken() -> None:
    np.ones(3_900_000)  # glibc keeps blocks up to the size of the largest that went back
    blocks = [np.ones(300_000) for _ in range(200)]
    last = blocks.pop()  # holds the end of the heap in its place
    blocks.clear()
    assert 1.1e8 < taken_by(lambda: [np.ones(300_000) for _ in range(50)]) < 1.4e8
    assert last.size


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/one/two", "", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/one/two", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_the_narrowest_control_group_bounds_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, names: tuple[str, str, str]
) -> None:
    for group, limit in (("one", "900000000"), ("one/two", "max")):
        (tmp_path / folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in zip(names[:2], (limit, "500000000"), strict=True):
            (tmp_path / folder / group / name).write_text(text)
        (tmp_path / folder / group / "memory.stat").write_text(f"anon 1\n{names[2]} 200000000\n")
    monkeypatch.setattr(machine_memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine_memory, "_GROUPS", tmp_path / "groups")
    (tmp_path / "groups").write_text(f"9:cpu:/one\n{line}\n")
    free = most_resident_bytes() - resident_bytes()
    assert free == pytest.approx(600e6, abs=2e6)  # 900 - 500 MB, 200 MB of them files
    assert ever_resident_bytes() == 900e6


def test_ulimit_bounds_the_process() -> None:
    words = "from monai_unet_app.machine_memory import *; print(most_resident_bytes(), resident_bytes(), ever_resident_bytes())"
    limited = f"ulimit -v 3000000; exec {sys.executable} -c '{words}'"
    told = subprocess.run(["bash", "-c", limited], check=True, capture_output=True, text=True).stdout
    most, own, ever = map(float, told.split())
    assert 2e9 < most - own < ever == 3.072e9


LEFT = """
import numpy as np
from monai_unet_app.machine_memory import large_blocks_go_back, resident_bytes

def left():
    before = resident_bytes()
    blocks = [np.ones(400_000) for _ in range(100)]  # 3.2 MB each
    keep = [blocks[n] for n in range(0, 100, 10)]
    del blocks
    return resident_bytes() - before - sum(block.nbytes for block in keep)

with large_blocks_go_back():
    print(left())
print(left())
"""


def test_blocks_that_are_freed_go_back_and_afterwards_are_kept_again() -> None:
    """In a program of its own: what other tests have left in the heap, and their threads, would be counted."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=True)
    inside, after = map(float, done.stdout.split())
    assert inside < 10e6
    assert after > 100e6
