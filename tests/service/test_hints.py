"""The header values by which a person finds a study, whatever becomes of its files meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodes import make_study

from monai_unet_app.service.hints import Hints


def test_a_study_that_could_not_be_read_once_is_read_again(tmp_path: Path) -> None:
    (instance,) = make_study(tmp_path / "1.2.3", count=1).glob("*.dcm")
    content = instance.read_bytes()
    instance.write_bytes(b"no DICOM")
    hints = Hints(tmp_path, ["AccessionNumber"])
    assert (hints.of("1.2.3"), hints.find("ACC-55")) == (("",), [])
    instance.write_bytes(content)
    assert (hints.of("1.2.3"), hints.find("acc-55")) == (("ACC-55-QX",), ["1.2.3"])


def test_a_study_that_is_forgotten_while_its_values_are_read_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(dict[str, tuple[str, ...]]):
        """Another thread removes each entry as soon as it is there."""

        def __setitem__(self, study: str, values: tuple[str, ...]) -> None:
            self.pop(study, None)

    make_study(tmp_path / "1.2.3", count=1)
    hints = Hints(tmp_path, ["AccessionNumber"])
    monkeypatch.setattr(hints, "_read", Forgetful())
    assert hints.of("1.2.3") == ("ACC-55-QX",)
