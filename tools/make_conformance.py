"""Makes docs/conformance.md, the DICOM conformance statement of dicom_io, in the order of PS3.2.

    python tools/make_conformance.py [--output docs/conformance.md]

The prose is in templates/conformance.md; lists and numbers come from the code's own tables, the attributes of written objects
from examples (conformance_objects.py). The template finds everything that is imported here by its name.
"""
# ruff: noqa: F401, E402

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, StrictUndefined
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, AllTransferSyntaxes

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools"), str(REPOSITORY / "tests")]

from conformance_objects import Example, examples
from hazards import HAZARDS

from dicom_io import coding
from dicom_io.confidentiality import table as confidentiality_table
from dicom_io.errors import DicomIoError
from dicom_io.kinds import BY_SERIES_NUMBER, LABEL_MAP_STORAGE, NAMES
from dicom_io.kinds.encodings import SYNTAXES
from dicom_io.net import (
    association,
    availability,
    destination,
    dicomweb,
    dimse_n,
    instance_file,
    instance_store,
    limits,
    outcome,
    query,
    scp,
    scu,
    storage_user,
    tls,
)
from dicom_io.net import commitment_provider as provider
from dicom_io.net import commitment_user as user
from dicom_io.objects import identity, patient_and_study
from dicom_io.read import read_series
from dicom_io.reading import bounded, kept_attributes
from dicom_io.reading.claims import MAX_VOXELS
from dicom_io.reading.codecs import BY_IMAGECODECS, decoder_of
from dicom_io.reading.codestreams import JPEG_PROGRESSIVE
from dicom_io.reading.geometry import JITTER_SHARE, MAX_JITTER_MM
from dicom_io.seg.pixels import STEPS
from dicom_io.sr import write as sr
from dicom_io.sr.measure import SegmentMeasures
from monai_unet_app.service.site import NodeConfig

TARGET, TEMPLATE = REPOSITORY / "docs/conformance.md", REPOSITORY / "tools/templates/conformance.md"
LIBRARIES = ("pydicom", "highdicom", "pynetdicom")


def main() -> None:
    """Writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TARGET)
    options = parser.parse_args()
    options.output.write_text(document(), encoding="utf-8")
    print(options.output)


def made_with() -> str:
    """The versions of the libraries whose tables are repeated in the document."""
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def document() -> str:
    """The whole statement as Markdown."""
    page = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)
    page.filters |= {
        "table": _table, "status": lambda status: f"0x{status:04X}", "named": lambda uid: f"{_name(uid)} ({uid})",
        "attributes": _attributes,
    }  # fmt: skip
    names = {name: value for name, value in globals().items() if not name.startswith("__")}
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**names, **_lists(examples()))


def _lists(found: Sequence[Example]) -> dict[str, Any]:
    """Rows of the tables that are made from several, by the names that they have in the template."""
    measures = sr._measurements(SegmentMeasures(1, 1, 1, 1, 1, None, None), "", None)
    names = [*((one.name, one.unit) for one in measures), *sr.INTENSITIES.values()]
    return {
        "libraries": made_with(),
        "created": [
            (name, uid) for uid, name in {str(one.sop_class_uid): _name(one.sop_class_uid) for one in found}.items()
        ],
        "uncompressed": [(UID(uid).name, uid) for uid in association.UNCOMPRESSED],
        "accepted": [(UID(uid).name, uid) for uid in (*scp._PLAIN, *scp.COMPRESSED)],
        "levels": [(level.upper(), ", ".join(keywords)) for level, keywords in query.RETURNED.items()],
        "read": [(uid.name, uid, _decoding(uid)) for uid in (*AllTransferSyntaxes, *JPEG_PROGRESSIVE)],
        "verdicts": _verdicts(),
        "series_numbers": [
            (kind.name, kind.series_number, "plus the source's SeriesNumber modulo 1000") for kind in BY_SERIES_NUMBER
        ],
        "encodings": [(name, UID(uid).name, uid) for name, uid in SYNTAXES.items()],
        "objects": found,
        "measured": [(name.meaning, name.value, name.scheme_designator, unit.value) for name, unit in names],
        "procedures": [
            (modality, one.value, one.scheme_designator, one.meaning) for modality, one in sr.PROCEDURES.items()
        ],
        "profile": confidentiality_table.PROFILE,
        "table": confidentiality_table.table(),
        "options": [(name, code.value, code.meaning) for name, code in confidentiality_table.OPTIONS.items()],
        "not_offered": confidentiality_table.NOT_OFFERED.items(),
        "storage": [(_name(uid), uid) for uid in association.storage_classes()],
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) + " |")
    return "\n".join(lines)


def _attributes(one: Example) -> list[tuple[str, ...]]:
    """Rows of the table of an object; a module is named once."""
    return [
        ("" if number else module, f"`{attribute}`", *more)
        for module, lines in one.rows.items()
        for number, (attribute, *more) in enumerate(lines)
    ]


def _name(uid: str) -> str:
    """The name in PS3.6; pydicom 3.0 does not know that of Label Map Segmentation."""
    return "Label Map Segmentation Storage" if uid == LABEL_MAP_STORAGE else UID(uid).name


def _verdicts() -> list[tuple[str, str]]:
    found = []
    with TemporaryDirectory() as name:
        for number, hazard in enumerate(HAZARDS):
            if hazard.needs is not None:
                continue
            folder = Path(name) / str(number)
            hazard.build(folder)
            found.append((hazard.name, _verdict(folder)))
    return found


def _verdict(folder: Path) -> str:
    try:
        read_series(folder)
    except DicomIoError as error:
        return f"refused ({type(error).__name__})"
    return "read"


def _decoding(uid: UID) -> str:
    if not uid.is_compressed:
        return "read"
    if uid in BY_IMAGECODECS:
        return "decoded by imagecodecs"
    try:
        found = decoder_of(uid).is_available
    except NotImplementedError:
        found = False
    return "decoded by pydicom's decoders" if found else "refused"


if __name__ == "__main__":
    main()
