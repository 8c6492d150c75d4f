"""The kinds of result objects: one row for each, in the order in which they are sent.

To add a kind:

1. Write a module or package of `dicom_io` with `write_result(content: ResultContent, path: Path) -> None`. It writes the object
   from an `objects.result_content.ResultContent` by `proof.save_proved`, with a proof of its own. `dicom_io/rtstruct/` is an
   example: `dataset.py` builds, `write.py` writes, `proof.py` proves.
2. Add a row to `KINDS`, behind the rows of all objects that it refers to, with a SeriesNumber that is a multiple of 1000, not
   taken, and higher than theirs, because results are written by SeriesNumber and sent by row.
3. Name the package among the layers of pyproject.toml and the format in the help of `--format` (`monai_unet_app/cli/flags.py`),
   add an example of it to `VARIANTS` of tools/conformance_objects.py, and run tools/make_conformance.py.
4. Add it to the tests that list all kinds (test_kinds, test_outgoing, test_destination, test_for_destination, test_results,
   test_result_identity, test_proof_of_wrong_objects) and to the texts that do (docs/outputs.md; predict, node and
   send-and-fetch in docs/how-to).

Destinations, sites, profiles, the choices of `--format` and corrections follow the table. A kind that is no result of
segmentation (a document, a note) has no format and names no module, because a caller of its own writes it. A row names its
module as text, and the module is imported when an object is written. So a receiver, which only asks for the kind of a file,
imports neither highdicom nor a codec.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, which pydicom does not name yet."""


@dataclass(frozen=True)
class Kind:
    """One kind of result object.

    Attributes:
        name: Its name in profiles of destinations and in outcomes.
        sop_classes: The SOP Class UIDs of its objects. A text that ends in a point is the beginning of several UIDs.
        series_number: SeriesNumber of its series, to which the source's own is added; its order in lists of formats.
        module: The module with `write_result`, if it has a format.
        format: Its name on the command line and in `result.json`; empty where it is no result of a segmentation.
        modality: Modality of its objects; empty where images have it too. Two kinds may share it, so the SOP class decides.
        shares_class: Objects of its SOP classes may also be images of other software.
        from_labels: It is made of labels alone, so that a correction of the labels writes it anew.
        on_slices: It lies on the slices of its source, even if the result was computed on another grid.
        needs_patient_space: It cannot be made for a picture, which has no millimetres.
        refers_to: Names of the kinds whose objects it refers to; it is held back where these do not arrive.
        ending: The ending of its file's name; empty for a folder of several files.
    """

    name: str
    sop_classes: tuple[str, ...]
    series_number: int
    module: str = ""
    format: str = ""
    modality: str = ""
    shares_class: bool = False
    from_labels: bool = False
    on_slices: bool = False
    needs_patient_space: bool = False
    refers_to: tuple[str, ...] = ()
    ending: str = ".dcm"

    # Any, because `objects`, where the type of a result stands, imports this package.
    def write_result(self, content: Any, path: Any) -> None:
        """Writes an object of this kind to `path` from a `ResultContent`; raises the errors of its writer."""
        import_module(self.module).write_result(content, path)


# Series numbers lie 1000 apart, because the source's own number modulo 1000 is added.
# fmt: off
KINDS = (
    Kind("SEG", ("1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP_STORAGE), 5000, "dicom_io.seg.write", "seg", "SEG",
         from_labels=True, on_slices=True),
    Kind("PM", ("1.2.840.10008.5.1.4.1.1.30",), 11000, "dicom_io.parametric.write", "pm",
         on_slices=True, needs_patient_space=True),
    Kind("RTSTRUCT", ("1.2.840.10008.5.1.4.1.1.481.3",), 7000, "dicom_io.rtstruct.write", "rtstruct", "RTSTRUCT",
         from_labels=True, on_slices=True, needs_patient_space=True),
    Kind("SR", ("1.2.840.10008.5.1.4.1.1.88.",), 6000, "dicom_io.sr.write", "sr", "SR",
         from_labels=True, needs_patient_space=True, refers_to=("SEG",)),
    Kind("GSPS", ("1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.11.2"), 8000, "dicom_io.presentation.write", "gsps",
         "PR", from_labels=True, on_slices=True),
    Kind("SC", ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7."), 9000, "dicom_io.capture", "sc",
         shares_class=True, from_labels=True, on_slices=True, ending=""),
    Kind("PDF", ("1.2.840.10008.5.1.4.1.1.104.1",), 10000, modality="DOC"),
    Kind("KO", ("1.2.840.10008.5.1.4.1.1.88.59",), 12000, modality="KO"),
)
# fmt: on
KIND = {kind.name: kind for kind in KINDS}
NAMES = tuple(kind.name for kind in KINDS)
BY_SERIES_NUMBER = tuple(sorted(KINDS, key=lambda kind: kind.series_number))
RESULT_KINDS = tuple(kind for kind in BY_SERIES_NUMBER if kind.format)
"""The kinds with a format, in the order in which results are written and listed: SEG before the kinds that refer to it."""
FORMATS = tuple(kind.format for kind in RESULT_KINDS)

_BY_SOP_CLASS = {uid: kind for kind in KINDS for uid in kind.sop_classes}


def write_objects(content: Any, formats: Iterable[str]) -> dict[str, str]:
    """Writes the objects of a `ResultContent` in these formats, and those that they refer to: an SR brings its SEG along.

    Returns:
        Format -> name of the file, in the order in which they were written.
    """
    names = {kind.name for kind in RESULT_KINDS if kind.format in formats}
    names |= {other for name in names for other in KIND[name].refers_to}
    # In the order of the table: a SEG is written before the objects that refer to it
    chosen = [kind for kind in RESULT_KINDS if kind.name in names]
    for kind in chosen:
        kind.write_result(content, content.paths[kind.name])
    return {kind.format: content.paths[kind.name].name for kind in chosen}


def kind_of_class(sop_class_uid: str) -> Kind | None:
    """The kind whose objects have a SOP class; None for all other classes, which count as images."""
    # An exact UID wins: KO is a class of its own among the classes of SR.
    exact = _BY_SOP_CLASS.get(sop_class_uid)
    beginnings = (kind for uid, kind in _BY_SOP_CLASS.items() if uid.endswith(".") and sop_class_uid.startswith(uid))
    return exact or next(beginnings, None)
