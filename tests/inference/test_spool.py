"""Rows that wait on disk come back as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from monai_unet_app.inference import spool as module
from monai_unet_app.inference.spool import Spool, StoredRows


@pytest.mark.parametrize("in_memory", [0, 1000, 1 << 20])
def test_rows_can_be_gone_through_again_from_memory_or_disk(
    in_memory: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", in_memory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = [(start, torch.randn(3, n, 5, 4)) for start, n in ((0, 2), (2, 7), (9, 1))]
    stored = StoredRows()
    passed = list(stored.kept(iter(rows)))
    for found in (passed, list(stored), list(stored)):
        assert [start for start, _ in found] == [0, 2, 9]
        assert all(torch.equal(values, own) for (_, values), (_, own) in zip(found, rows, strict=True))
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_free_again_is_used_again() -> None:
    spool = Spool()
    first, second = spool.put(torch.zeros(4, 5)), spool.put(torch.ones(4, 5))
    assert torch.equal(spool.take(first, (4, 5)), torch.zeros(4, 5))
    assert spool.put(torch.full((5, 4), 2.0)) == first
    assert torch.equal(spool.read(second, (4, 5)), torch.ones(4, 5))
    assert torch.equal(spool.take(first, (5, 4)), torch.full((5, 4), 2.0))
