"""What OHIF shows of our results: every structure in its colour, where it lies in the image, and no colour elsewhere.

OHIF 3.13 lays a frame of a SEG on the instance that it refers to, whatever position it states: what is tested here is that
reference and the order of the pixels. Contours of an RTSTRUCT are laid where their points are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import browser
import numpy as np
import pytest
import result_phantoms
from numpy.typing import NDArray
from ohif import Viewer, ohif
from orthanc import Orthanc, orthanc
from phantoms import oblique_affine, write_mr_series
from PIL import Image
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.read import read_series
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import write_seg

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(browser.program() is None, reason="there is no Chromium; tests/interop/install.sh brings one"),
]

RED, GREEN = (150, 0, 40), (0, 150, 60)  # too dark for `white`, unless the image shines through
RESULT = replace(
    result_phantoms.RESULT,
    segments=tuple(
        replace(one, display_rgb=rgb) for one, rgb in zip(result_phantoms.SEGMENTS, (RED, GREEN), strict=True)
    ),
)
HUES = {1: RED, 2: GREEN}
WRITERS = {"SEG": write_seg, "RTSTRUCT": write_rtstruct}
SPACING_MM = (1.0, 1.4, 3.0)
SHAPE = (120, 88, 12)
WINDOW = {"WindowCenter": 500, "WindowWidth": 1000}
WITHIN_MM = 0.4  # of each edge in a slice: half a voxel would be seen
IMAGE_WITHIN_MM = 1.0  # its edges are blurred: the viewer interpolates images, but neither masks nor contours
FAR_PIXELS = 8  # in another plane: a little more than from slice to slice, and 10 mm are more than 20


def stairs() -> NDArray[np.uint8]:
    """Shape (I, J, K): two blocks that differ in size, and in each slice from the one before; one holds the middle."""
    labels = np.zeros(SHAPE, np.uint8)
    for k in range(2, 9):
        labels[8 + 3 * k : 68, 10 : 36 + 2 * k, k] = 1
    for k in range(5, 11):
        labels[74 : 60 + 4 * k, 62 - 2 * k : 76, k] = 2
    return labels


def image_of(labels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """White blocks in a grey that says in which slice one is."""
    image = np.broadcast_to(250 + 10 * np.arange(SHAPE[2]), SHAPE)
    return np.where(labels > 0, 1000, image).astype(np.int16)


def grey_of(k: int) -> float:
    """0 to 255: what is around the blocks in slice k, as it is shown."""
    return (250 + 10 * k) * 255 / 1000


@dataclass(frozen=True)
class Site:
    """An archive, and the address of the viewer that shows what it has."""

    archive: Orthanc
    address: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with orthanc(tmp_path_factory.mktemp("archive") / "orthanc") as archive, ohif(archive) as address:
        yield Site(archive, address)


def looked_at(site: Site, study_instance_uid: str, folder: Path, look: Callable[[Viewer], None]) -> None:
    """Looks at a study in a new browser; once more where OHIF draws nothing, as it does now and then on a busy machine."""
    for number in (1, 2):
        with browser.browser(folder / f"profile_{number}") as tab:
            tab.size(1200, 800)
            try:
                look(Viewer(tab, site.address, study_instance_uid))
                return
            except TimeoutError:
                if number == 2:
                    raise


def stored(site: Site, folder: Path, kind: str, beside: int = 0) -> str:
    """Puts an oblique series and its result, `beside` voxels along I from where it belongs, into the archive.

    Returns:
        The StudyInstanceUID.
    """
    header = {"PatientName": "Phantom", "PatientID": folder.name, **WINDOW}  # OHIF lists all studies of a patient
    write_mr_series(folder / "series", image_of(stairs()), oblique_affine(SPACING_MM), header=header)
    volume = read_series(folder / "series")
    labels = volume.with_array(np.roll(stairs(), beside, axis=0))
    result = WRITERS[kind](labels, volume, folder / "result.dcm", RESULT)
    outcomes = send(parse_destination(site.archive.web), [*volume.provenance.files, result])
    assert {outcome.state for outcome in outcomes} == {"sent"}
    return volume.provenance.study_instance_uid


# --- what is in a picture of the window -------------------------------------------------------------------------------


def coloured(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is not grey."""
    return np.ptp(picture.astype(int), axis=2) > 40


def painted(picture: NDArray[np.uint8], number: int) -> NDArray[np.bool_]:
    """Where a picture has the hue of a segment."""
    hue = HUES[number] / np.linalg.norm(HUES[number])
    found = picture.astype(float) - picture.min(axis=2, keepdims=True)
    return coloured(picture) & (found @ hue > 0.95 * np.linalg.norm(found, axis=2))


def painted_at_all(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture has the hue of any segment."""
    return painted(picture, 1) | painted(picture, 2)


def white(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the blocks of the image are, also under the colour of a segment; what is blue belongs to the window."""
    return (picture.max(axis=2) > 165) & (painted_at_all(picture) | ~coloured(picture))


def box(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Begin and end along the first axis, begin and end along the second, in elements."""
    spans = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    return np.array([edge for span in spans for edge in (span[0], span[-1] + 1)], float)


def image_in(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part of a picture of a slice that the image takes up; beside it the window is black but for some words."""
    lit = (picture.max(axis=2) > 40) & ~coloured(picture)  # the window's frame is blue
    rows, columns = (np.flatnonzero(lit.mean(axis=axis) > 0.3) for axis in (1, 0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def box_mm(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Begin and end of what is marked in the picture of a slice, along J and along I, in mm from the slice's corner."""
    steps = np.repeat([SHAPE[1] * SPACING_MM[1] / mask.shape[0], SHAPE[0] * SPACING_MM[0] / mask.shape[1]], 2)
    return box(mask) * steps


def wanted_mm(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The same of a slice of the phantom, of shape (I, J)."""
    return box(mask.T) * np.repeat([SPACING_MM[1], SPACING_MM[0]], 2)


def is_slice(picture: NDArray[np.uint8], k: int) -> bool:
    """Whether the slice is drawn: most of it is of its grey."""
    return (picture.max(axis=2) > 40).mean() > 0.3 and abs(np.median(image_in(picture)) - grey_of(k)) < 1.2


def picture_of(viewer: Viewer, k: int) -> NDArray[np.uint8]:
    """The image of slice k and what is painted over it; the phantom's instances are numbered backwards."""
    return image_in(viewer.slice_picture(SHAPE[2] - k, lambda picture: is_slice(picture, k)))


def stray(picture: NDArray[np.uint8]) -> int:
    """Pixels that are white far from all paint, or painted far from all white; an outline counts as filled."""
    block, paint = white(picture), binary_fill_holes(painted_at_all(picture))
    far_from_paint, far_from_block = (distance_transform_edt(~one) > FAR_PIXELS for one in (paint, block))
    return int((block & far_from_paint).sum() + (paint & far_from_block).sum())


def planes_of(viewer: Viewer) -> list[NDArray[np.uint8]]:
    """Pictures of the patient's three planes, once both segments are seen; the first is in each plane."""
    return viewer.reformatted(
        lambda picture: all(painted(picture, number).any() for number in HUES),
        lambda picture: bool(painted(picture, 1).any()),
    )


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_result_lies_on_its_structures_in_every_slice_and_plane(kind: str, site: Site, tmp_path: Path) -> None:
    def look(viewer: Viewer) -> None:
        for k in range(SHAPE[2]):
            picture, block = picture_of(viewer, k), stairs()[:, :, k]
            for number in HUES:
                here = painted(picture, number)
                assert here.any() == (number in block), f"segment {number}, slice {k}"
                if number in block:
                    np.testing.assert_allclose(box_mm(here), wanted_mm(block == number), atol=WITHIN_MM)
                    assert kind == "RTSTRUCT" or here.mean() == pytest.approx((block == number).mean(), rel=0.03)
            assert white(picture).any() == block.any()
            if block.any():
                np.testing.assert_allclose(box_mm(white(picture)), wanted_mm(block > 0), atol=IMAGE_WITHIN_MM)
            assert not (coloured(picture) & ~painted_at_all(picture)).any()
        planes = planes_of(viewer)
        Image.fromarray(viewer.tab.picture()).save(tmp_path / "planes.png")
        assert [stray(plane) for plane in planes] == [0, 0, 0]
        # OHIF draws once more into the viewport of the layout that was left, on a busy machine after it is gone
        assert [line for line in viewer.tab.console if "viewport has been destroyed" not in line] == []
        assert all(url.startswith((site.address, "data:", "blob:")) for url in viewer.tab.requests)

    looked_at(site, stored(site, tmp_path, kind), tmp_path, look)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_result_10_mm_beside_its_structures_is_seen_there(kind: str, site: Site, tmp_path: Path) -> None:
    def look(viewer: Viewer) -> None:
        picture, block = picture_of(viewer, 6), stairs()[:, :, 6]
        for number in HUES:
            moved_mm = box_mm(painted(picture, number)) - wanted_mm(block == number)
            np.testing.assert_allclose(moved_mm, [0, 0, 10, 10], atol=WITHIN_MM)
        planes = planes_of(viewer)
        Image.fromarray(viewer.tab.picture()).save(tmp_path / "planes.png")
        assert min(stray(plane) for plane in planes) > 100

    looked_at(site, stored(site, tmp_path, kind, beside=10), tmp_path, look)
