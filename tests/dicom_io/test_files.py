"""A file is replaced when the new one is whole, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dicom_io.files import replace_when_whole


def test_a_file_appears_under_its_name_with_the_usual_permissions(tmp_path: Path) -> None:
    path, usual = tmp_path / "case.nii.gz", tmp_path / "usual"
    usual.write_bytes(b"")
    with replace_when_whole(path, sync=True) as part:
        part.write_bytes(b"new")
        assert part.name == path.name
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == usual.stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["case.nii.gz", "usual"]


def test_after_an_error_the_earlier_file_is_as_it_was_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replace_when_whole(path) as part:
            part.write_bytes(b"half of it")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with replace_when_whole(path) as first, replace_when_whole(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_file_that_was_never_written_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replace_when_whole(path):
        pass
    assert path.read_bytes() == b"old"
