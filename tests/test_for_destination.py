"""`predict --for` writes what a destination takes, as far as the source can have it."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from phantoms import write_picture

from dicom_io.dicomize import dicomize
from dicom_io.kinds import NAMES
from dicom_io.volume import Provenance, Volume
from monai_unet_app.cli import main
from monai_unet_app.errors import UsageError
from monai_unet_app.results import formats_for

TABLE = '[destinations.near]\nhost = "127.0.0.1"\nport = 104\nae_title = "ARCHIVE"\n[destinations.near.profile]\n'


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


def site_file(folder: Path, profile: str) -> Path:
    path = folder / "site.toml"
    path.write_text(TABLE + profile)
    return path


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def test_what_no_picture_can_have_is_left_out_of_what_a_destination_takes() -> None:
    assert formats_for(NAMES) == (("seg", "sr", "rtstruct", "gsps", "sc", "pm"), ())
    assert formats_for(NAMES, planar=True) == (("seg", "gsps", "sc"), ("sr", "rtstruct", "pm"))
    assert formats_for(("RTSTRUCT", "SC"), planar=True) == (("sc",), ("rtstruct",))
    with pytest.raises(UsageError, match="the destination takes RTSTRUCT, PDF; one of seg, gsps, sc is needed"):
        formats_for(("RTSTRUCT", "PDF"), planar=True)


def test_a_default_profile_on_a_picture_writes_what_it_can_and_says_what_not(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle("retina_vessel_unet2d")
    config = bundle / "configs" / "inference.yaml"
    config.write_text(re.sub(r"extent_mm: .*", "extent_mm: {least: [40, 40], most: [80, 80]}", config.read_text()))
    colours = np.random.default_rng(4).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    image = write_picture(tmp_path / "in" / "eye.dcm", colours)
    words = ["predict", "--bundle", bundle, "--input", image, "--output", tmp_path / "out"]
    words += ["--for", "near", "--site", site_file(tmp_path, "empty_frames = false\n")]
    assert run(*words) == 0
    assert (
        "left out, although near takes them: sr, rtstruct, pm; a picture has no patient space"
        in capsys.readouterr().err
    )
    written = {path.name.removeprefix("eye_") for path in (tmp_path / "out").iterdir()}
    assert written == {"result.json", "seg.dcm", "gsps.dcm", "sc"}
    assert run(*words, "--json") == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["left_out"] == ["sr", "rtstruct", "pm"]
    assert answer.err == ""


def test_an_encoding_in_a_profile_without_segmentations_does_not_matter(
    tiny_bundle: Callable[[], Path], crop: Volume, tmp_path: Path
) -> None:
    corner = Volume(crop.array[:24, :30, :16], crop.affine_lps, Provenance("nifti"))  # outlines of noise take long
    series = dicomize(corner, tmp_path / "in", case_id="one").series_folder
    site = site_file(tmp_path, 'objects = ["GSPS"]\nseg_encoding = "labelmap"\n')
    words = ["predict", "--bundle", tiny_bundle(), "--input", series, "--output", tmp_path / "out"]
    assert run(*words, "--for", "near", "--site", site) == 0
    assert {path.name.rpartition("_")[2] for path in (tmp_path / "out").iterdir()} == {"gsps.dcm", "result.json"}
