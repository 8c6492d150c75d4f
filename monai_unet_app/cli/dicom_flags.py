"""The flags of the verbs for DICOM objects, one class for each verb; see `flags`."""

from typing import Annotated, Literal

from monai_unet_app.cli.dataclass_parser import Flag, Options
from monai_unet_app.cli.flag_types import AboveZero, FromZero, Place, Text


class Remote(Options):
    """A DICOM node or DICOMweb service.

    Attributes:
        to: AET@host:port, an http(s) URL, or a name in --site
        site: TOML file that describes destinations
        aet: our AE title (default: the site's, or MONAIUNET)
    """

    to: Text
    site: Place | None = None
    aet: Text | None = None


class Conditions(Remote):
    """Conditions of a query to a node or service.

    Attributes:
        study: Study Instance UID
        series: Series Instance UID; with --study
        patient_id: * and ? stand for any text
        patient_name: FAMILY^GIVEN; * and ? stand for any text
        accession: accession number
        date: of the study: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD
        modality: MR, CT, SEG, ...
    """

    study: Text | None = None
    series: Text | None = None
    patient_id: Text | None = None
    patient_name: Text | None = None
    accession: Text | None = None
    date: Text | None = None
    modality: Text | None = None


class Send(Remote):
    """Flags of `pacs send`.

    Attributes:
        files: DICOM files, or folders of any depth
        commit: then ask the node to confirm that it keeps the files (storage commitment)
        listen: with --commit: PORT or HOST:PORT of this machine for the report of the node (default: that of --site; without
            any, the node must report over the association of the request)
        wait_s: with --commit: seconds to wait for the report (default: 60)
    """

    files: Annotated[list[Place], Flag(names=("files",))]
    commit: bool = False
    listen: Text | None = None
    wait_s: AboveZero = 60.0


class Find(Conditions):
    """Flags of `pacs find`.

    Attributes:
        level: series needs --study, image needs --study and --series (default: study)
        limit: most answers; 0: all (default: 200)
        patients: show names and IDs of patients in the table
    """

    level: Literal["study", "series", "image"] = "study"
    limit: FromZero = 200
    patients: bool = False


class Fetch(Conditions):
    """Flags of `pacs fetch`.

    Attributes:
        instance: SOP Instance UID; with --study and --series
        output: folder for <study>/<series>/<instance>.dcm
        move: fetch by C-MOVE and listen at this PORT or HOST:PORT, which the archive must know
    """

    instance: Text | None = None
    output: Place
    move: Text | None = None


class Deidentify(Options):
    """Flags of `deidentify`.

    Attributes:
        input: DICOM files, or folders of any depth
        output: folder for <study>/<series>/<instance>.dcm
        key_file: the same key gives the same new UIDs; made if absent (default: a new key that is not kept)
        options: comma-separated: retain-uids, retain-device-identity, retain-institution-identity,
            retain-patient-characteristics, retain-full-dates or retain-modified-dates, clean-structured-content
        allow_burned_in: also write objects whose pixels may show a name; look at them first
    """

    input: list[Place]
    output: Place
    key_file: Place | None = None
    options: str = ""
    allow_burned_in: bool = False
