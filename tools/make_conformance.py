"""Makes docs/conformance.md, the DICOM conformance statement of dicom_io, in the order of PS3.2.

    python tools/make_conformance.py [--output docs/conformance.md]

Lists and numbers come from the code's own tables, the attributes of written objects from examples (conformance_objects.py);
the prose between them stands here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, AllTransferSyntaxes

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools"), str(REPOSITORY / "tests")]

from conformance_objects import Example, examples  # noqa: E402
from hazards import HAZARDS  # noqa: E402

from dicom_io import coding  # noqa: E402
from dicom_io.confidentiality import table as confidentiality_table  # noqa: E402
from dicom_io.errors import DicomIoError  # noqa: E402
from dicom_io.kinds import BY_SERIES_NUMBER, LABEL_MAP_STORAGE, NAMES  # noqa: E402
from dicom_io.kinds.encodings import SYNTAXES  # noqa: E402
from dicom_io.net import (  # noqa: E402
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
from dicom_io.net import commitment_provider as provider  # noqa: E402
from dicom_io.net import commitment_user as user  # noqa: E402
from dicom_io.objects import identity, patient_and_study  # noqa: E402
from dicom_io.read import read_series  # noqa: E402
from dicom_io.reading import bounded, kept_attributes  # noqa: E402
from dicom_io.reading.claims import MAX_VOXELS  # noqa: E402
from dicom_io.reading.codecs import BY_IMAGECODECS, decoder_of  # noqa: E402
from dicom_io.reading.codestreams import JPEG_PROGRESSIVE  # noqa: E402
from dicom_io.reading.geometry import JITTER_SHARE, MAX_JITTER_MM  # noqa: E402
from dicom_io.seg.pixels import STEPS  # noqa: E402
from dicom_io.sr import write as sr  # noqa: E402
from dicom_io.sr.measure import SegmentMeasures  # noqa: E402
from monai_unet_app.service.site_file import NodeConfig  # noqa: E402

TARGET = REPOSITORY / "docs" / "conformance.md"
LIBRARIES = ("pydicom", "highdicom", "pynetdicom")
Rows = Iterable[Sequence[object]]


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
    found = examples()
    parts = (
        _overview(found),
        _model(),
        _echo_and_store(),
        _query_retrieve(),
        _commitment_user(),
        _provider(),
        _commitment_provider(),
        _availability(),
        _web(),
        _security(),
        _media(),
        _created(found),
        _character_sets(),
        _codes(),
        _deidentification(),
        _annex(),
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in row) + " |")
    return "\n".join(lines)


def _named(uid: str) -> str:
    return f"{_name(uid)} ({uid})"


def _name(uid: str) -> str:
    """The name in PS3.6; pydicom 3.0 does not know that of Label Map Segmentation."""
    return "Label Map Segmentation Storage" if uid == LABEL_MAP_STORAGE else UID(uid).name


def _overview(found: Sequence[Example]) -> str:
    created = {str(one.sop_class_uid): _name(one.sop_class_uid) for one in found}
    return f"""# DICOM conformance statement

This page follows the order of DICOM PS3.2. `tools/make_conformance.py` makes it from the code's own tables; do not edit it
by hand. Lists of SOP classes, modules and Types are those of {made_with()}.

The software is for research, not for diagnosis; the SeriesDescription of every result object ends in RESEARCH.

## 1 Overview

`dicom_io` reads image series, writes results (segmentations, reports, contours, pictures, documents, maps) that refer to
them, sends and fetches both, and removes identities. It has no user interface of its own; `monai-unet` is the command line
on it.

### Network services

| SOP class | user (SCU) | provider (SCP) |
|---|---|---|
| {_named(association.VERIFICATION)} | yes | while it listens |
| Storage, all classes of Annex A | yes | while it listens; as part of C-GET |
| {_named(scu.STUDY_ROOT_FIND)} | yes | no |
| {_named(scu.STUDY_ROOT_MOVE)} | yes | no |
| {_named(scu.STUDY_ROOT_GET)} | yes | no |
| {_named(provider.PUSH_MODEL)} | yes | where a program adds it to a provider |
| {_named(availability.NOTIFICATION)} | no | where a program adds it to a provider |

| DICOMweb service | user agent | origin server |
|---|---|---|
| QIDO-RS | yes | no |
| WADO-RS | yes | no |
| STOW-RS | yes | no |

Not supported: Modality Worklist, MPPS, Print, the Patient Root model, WADO-URI, UPS-RS.

### Media services

Files of PS3.10 are read and written, and the files that a DICOMDIR lists are read. No DICOMDIR is written, and no media
application profile of PS3.11 is claimed.

### Objects created

{_table(("SOP class", "UID"), [(name, uid) for uid, name in created.items()])}

`monai-unet dicomize` also writes MR Image Storage (1.2.840.10008.5.1.4.1.1.4) or CT Image Storage (1.2.840.10008.5.1.4.1.1.2)
from NIfTI images, of a made-up patient."""


def _model() -> str:
    return f"""## 2 Implementation model

| application entity | does | lives |
|---|---|---|
| user | C-ECHO, C-STORE, C-FIND, C-MOVE, C-GET, storage commitment as SCU | as long as the call |
| provider | C-STORE, C-ECHO as SCP; storage commitment and instance availability where they are added | during a C-MOVE or a \
storage commitment request, as long as a program keeps `Provider` open, and always in a node (`monai-unet node`) |
| web user | QIDO-RS, WADO-RS, STOW-RS as user agent | as long as the call |

Of this library nothing runs by itself, and nothing is sent that was not asked for. The one program that runs by itself is
`monai-unet node`: it takes studies and sends results where the rules of its site file say ([operations](operations.md)). Files
to be sent go in this order:
images, then {", ".join(NAMES)}, or in the order of the destination's profile, in which SEG precedes SR.

### Implementation identification

| item | value |
|---|---|
| AE title | {destination.OUR_AE_TITLE}, configurable, 1 to 16 characters |
| Implementation Class UID on the network | pynetdicom's, 1.2.826.0.1.3680043.9.3811 and its version |
| Implementation Class UID in files | pydicom's, {PYDICOM_IMPLEMENTATION_UID} |

### Association policies

| item | value |
|---|---|
| application context | 1.2.840.10008.3.1.1.1 |
| largest PDU that is received | {association.LARGEST_PDU} bytes |
| presentation contexts of one association | at most {association.MOST_CONTEXTS}; more files take several associations |
| associations at one time, as user | one |
| associations at one time, as provider | {scp.Listen.most_senders}; in a node {NodeConfig.most_senders} (`most_senders`); \
one in five is kept free for other addresses |
| time for a caller to say who it is (TLS handshake, A-ASSOCIATE-RQ) | {scp.Listen.negotiation_s:g} s; \
until then it does not count as an association |
| asynchronous operations | not negotiated |
| user identity | not negotiated |
| role selection, as requestor | SCP role for storage classes, with C-GET only; SCP role, without the SCU role, for storage \
commitment, when we report |
| role selection, as acceptor | both roles for storage commitment, where reports to us are waited for; else none is answered |
| time for connection and acceptance, as user | {destination.Destination.connect_s:g} s, configurable |
| time for each answer, as user | {destination.Destination.answer_s:g} s, configurable |
| silence after which a sender is dropped, as provider | {scp.Listen.idle_s:g} s, configurable |
| port, as provider | {scp.Listen.port}, configurable; it binds {scp.Listen.host} unless told otherwise |
| called AE title, as provider | must be ours, or the association is rejected, unless a program lets any title in |
| calling AE titles, as provider | with C-MOVE and `pacs send --commit` the archive's or those of `senders`; else as the \
program says |
| callers' IP addresses, as provider | all, or networks that the program lists; others are rejected with result \
{scp._UNKNOWN_CALLER[0]}, source {scp._UNKNOWN_CALLER[1]}, reason {scp._UNKNOWN_CALLER[2]} |
| largest data set, as provider | {limits.LARGEST_INSTANCE // 2**30} GiB for an instance, configurable; \
{limits.LARGEST_OTHER // 2**20} MiB and {bounded.MAX_ITEMS} items for other requests |
| instances and bytes of one association, as provider | any amount, or limits that the program sets |"""


def _syntaxes(uids: Iterable[str]) -> str:
    return _table(("transfer syntax", "UID"), [(UID(uid).name, str(uid)) for uid in uids])


def _echo_and_store() -> str:
    return f"""## 3 AE specification: user

### C-ECHO

{_named(association.VERIFICATION)} is proposed with the uncompressed transfer syntaxes:

{_syntaxes(association.UNCOMPRESSED)}

Any status but 0x0000 counts as failure.

### C-STORE

Any instance can be sent, also of a private SOP class. For each SOP class there is one presentation context for each transfer
syntax in which files are, and one with the uncompressed ones above. Verification is proposed too. The priority is MEDIUM.

1. A file goes as it is if its own transfer syntax was accepted.
2. Else an uncompressed little endian file is rewritten in the accepted uncompressed syntax, and a compressed one is
   decompressed (section 7 says which can be). The SOP Instance UID stays; the outcome names what was done.
3. Else it is not sent, and its outcome is "refused".

| status | outcome |
|---|---|
| 0x0000 | sent |
| warning (0xB000, 0xB006, 0xB007, and others of that category) | warning: the peer has it |
| 0x{outcome.DUPLICATE_INSTANCE:04X} | already there, where the copy is shown to be this instance; else refused |
| any other | refused, with the status and its meaning |
| no answer, or an abort | the association is opened again, {storage_user.TRIES} times at most; then "failed" |

What the destination's profile does not name is "left out": kinds of objects, and a SEG in another encoding. A report is "held
back" if an instance of its evidence was offered in the same call and is not there afterwards, or was left out for its encoding.
An object's kind is that of its SOP class, except that of Secondary Captures only our own count as SC, known by Image Type
DERIVED, Source Image Sequence and Contributing Equipment Sequence; others are sent as images."""


def _query_retrieve() -> str:
    levels = [(level.upper(), ", ".join(keywords)) for level, keywords in query.RETURNED.items()]
    keys = ", ".join(query._KEYWORDS.values())
    return f"""### C-FIND

{_named(scu.STUDY_ROOT_FIND)}, in the uncompressed transfer syntaxes. Relational queries and other extended
negotiation are not used.

{_table(("level", "keys that are asked for"), levels)}

Conditions can be set on {keys}, and on ModalitiesInStudy (study) or Modality (other levels). Texts may hold `*` and `?`;
dates may be ranges. A UID matches as a single value. With conditions beyond ASCII the identifier is in ISO_IR 192.

| status | meaning here |
|---|---|
| 0xFF00, 0xFF01 | an answer; the next is waited for |
| 0x0000 | done |
| 0xFE00 | done, if a C-CANCEL was sent because the limit of answers is reached; else a failure |
| any other | failure; the answers until then are not used |

### C-MOVE

{_named(scu.STUDY_ROOT_MOVE)}, at study, series or image level, in the uncompressed transfer syntaxes. The move
destination is our own AE title; the provider of section 4 listens as long as the C-MOVE runs and takes instances of the
study that was asked for only.

### C-GET

{_named(scu.STUDY_ROOT_GET)}, at the same levels. The archive is first asked by C-FIND which SOP classes there are,
and those are proposed with the SCP role; where it does not tell, \
{len(association.common_storage_classes())} usual storage classes
are. Each is proposed uncompressed, and in the compressed syntaxes of section 4 as far as there are presentation contexts.
Instances are kept as in section 4.

| status of C-MOVE and C-GET | meaning here |
|---|---|
| 0xFF00 | goes on; the counts of sub-operations are kept |
| 0x0000 | done |
| 0x{scu._SOME_FAILED:04X} | done; what failed is reported, and the result is incomplete |
| 0xA801 | failure: the archive does not know our AE title |
| any other | failure, with its meaning |"""


def _provider() -> str:
    return f"""## 4 AE specification: provider

Verification and the storage SOP classes of Annex A are accepted in the transfer syntaxes below. Where one presentation
context proposes several, the first of this list is taken.

{_syntaxes([*scp._PLAIN, *scp.COMPRESSED])}

JPIP transfer syntaxes are not accepted: they hold an address in the place of pixels.

Instances are kept as they come, in `<study>/<series>/<instance>.dcm`, without coercion of any attribute: storage level 2
(full). The answer is sent after the file is forced to the disk.

| status | when |
|---|---|
| 0x0000 | the instance is on the disk, or was there with the same content |
| 0x{instance_store.OUT_OF_RESOURCES:04X} | it cannot be written, for instance because the disk is full; or it is refused \
before it is taken, because the program says that there is no room, or a limit of section 2 is reached |
| 0x{instance_file.CANNOT_UNDERSTAND:04X} | it cannot be read to its end, its UIDs are none, or they differ from the request, \
it becomes more than {bounded.MAX_INFLATED_BYTES // 2**20} MiB when inflated, or more than \
{instance_file.SMALL_BYTES // 2**20} MiB and {instance_file.MOST_RATIO} times its size, or has more than {bounded.MAX_ITEMS} \
items |
| 0x{outcome.DUPLICATE_INSTANCE:04X} | other content is kept under its SOP Instance UID; what was there stays |
| 0x{instance_store.NOT_AUTHORISED:04X} | its study was not asked for |

A refusal carries an Error Comment without anything of the patient."""


def _commitment_user() -> str:
    return f"""### Storage commitment

{_named(provider.PUSH_MODEL)}, in the uncompressed transfer syntaxes,
with the well-known instance {provider.PUSH_MODEL_INSTANCE}.
The N-ACTION (type {provider.REQUEST_COMMITMENT}) has a TransactionUID of its own and references to all instances that were
named; Storage Media File-Set attributes are not sent. Any status but 0x0000 is a failure.

The N-EVENT-REPORT is taken over the same association, which is kept open for it: as long as the caller waits, or for
{user.HOLD_S:g} s where a provider of ours listens too, to which the archive then may report over an association of its
own, with the SCP role. An instance counts as committed only where ReferencedSOPSequence of the report lists it, with its SOP
class, and FailedSOPSequence does not. What the report does not mention, and everything if no report comes in time, is
"unreported".

| status of our answer to a report | when |
|---|---|
| 0x0000 | it is taken |
| 0x{dimse_n.INVALID_ARGUMENT:04X} | it is on a transaction that is not waited for, or a UID is none |
| 0x{dimse_n.NO_SUCH_EVENT:04X} | its event type is not {provider.ALL_COMMITTED} or {provider.FAILURES_EXIST} |
| 0x{dimse_n.RESOURCE_LIMITATION:04X} | its data set is larger than section 2 says |"""


def _commitment_provider() -> str:
    return f"""### Storage commitment

{_named(provider.PUSH_MODEL)}, in the uncompressed transfer syntaxes,
where a program adds it. An N-ACTION is answered once the request is kept; whether it survives the end of the program is the
program's choice.

| status of N-ACTION | when |
|---|---|
| 0x0000 | the request is accepted and kept; a report follows |
| 0x{dimse_n.NO_SUCH_INSTANCE:04X} | it is not for the well-known instance |
| 0x{dimse_n.NO_SUCH_ACTION:04X} | its action type is not {provider.REQUEST_COMMITMENT} |
| 0x{dimse_n.INVALID_ARGUMENT:04X} | a UID is missing or is none, or no instance is referenced |
| 0x{dimse_n.CLASS_CONFLICT:04X} | its SOP class is not that of its presentation context |
| 0x{provider.DUPLICATE_TRANSACTION:04X} | its TransactionUID is that of a request of the same AE title that is not yet \
reported on, with other references |
| 0x{dimse_n.RESOURCE_LIMITATION:04X} | its data set is larger than section 2 says, or as the program says |
| 0x{dimse_n.PROCESSING_FAILURE:04X} | it could not be kept |

What is committed is found out afterwards, from the disk: an instance counts if its file is there, can be read to its end, and
has the SOP class and UID of the reference. How long instances are kept after that is the program's choice.

| FailureReason | when |
|---|---|
| 0x{dimse_n.NO_SUCH_INSTANCE:04X} | no file of this instance is there |
| 0x{dimse_n.CLASS_CONFLICT:04X} | it is there with another SOP class |
| 0x{dimse_n.PROCESSING_FAILURE:04X} | its file cannot be read to its end, or holds another instance |

The N-EVENT-REPORT has event type {provider.ALL_COMMITTED} where all is there, else {provider.FAILURES_EXIST}. It goes over a
new association to the address that is configured for the calling AE title, with the SCP role proposed and the SCU role not; a
peer that answers no role selection gets it too. Where no address is configured it goes over the association of the request,
while that is open. A report that is not answered with 0x0000 is sent again: {provider.TRIES} times in all where requests are
kept in memory, else as the program says. The same request may come again and is reported on again. RetrieveAETitle and Storage
Media File-Set attributes are neither used nor sent."""


def _availability() -> str:
    return f"""### Instance Availability Notification

{_named(availability.NOTIFICATION)}, N-CREATE, in the uncompressed
transfer syntaxes, where a program adds it. A notification is taken whole or not at all. What is
{availability.ONLINE} counts as available. Retrieve URIs are not followed.

| status | when |
|---|---|
| 0x0000 | the program has taken the notification |
| 0x{availability.MISSING_ATTRIBUTE:04X} | an attribute of Type 1 in PS3.4 table R.3.2-1 is missing |
| 0x{availability.MISSING_VALUE:04X} | it has no value, or a sequence no item |
| 0x{availability.INVALID_VALUE:04X} | a UID is none, or the availability is not {", ".join(availability.CODES)} |
| 0x{dimse_n.CLASS_CONFLICT:04X} | its SOP class is not that of its presentation context |
| 0x{dimse_n.RESOURCE_LIMITATION:04X} | its data set is larger than section 2 says |
| 0x{dimse_n.PROCESSING_FAILURE:04X} | the program could not take it |"""


def _web() -> str:
    return f"""## 5 DICOMweb services

Requests go to the one URL that is configured. Redirections, proxies of the environment, RetrieveURL, BulkDataURI and
PixelDataProviderURL are not followed. Times are those of section 2.

| service | resources | media types | details |
|---|---|---|---|
| QIDO-RS | studies; a study's series; a series' instances | application/dicom+json | same keys as C-FIND; pages of \
{dicomweb.PAGE} by limit and offset |
| WADO-RS | a study, a series, an instance | multipart/related; type="application/dicom"; transfer-syntax=* | as it is held \
there |
| STOW-RS | the service's studies | multipart/related; type="application/dicom" | at most {dicomweb.MOST_INSTANCES} instances \
and {dicomweb.MOST_BYTES // 2**20} MiB a request, but a larger instance goes alone; one kind of object a request |

STOW-RS: an instance counts as sent only if ReferencedSOPSequence of the answer lists it; with a WarningReason it is
"warning". FailedSOPSequence makes it "refused" with the FailureReason, or "already there" where that is
0x{outcome.DUPLICATE_INSTANCE:04X}. HTTP status {", ".join(map(str, dicomweb._REFUSED))} is searched for the
same lists. What the answer does not mention is "failed". Other HTTP errors make all that is left "failed", or end the call
where nothing was sent. There is no echo in DICOMweb; a search for one study takes its place."""


def _security() -> str:
    return f"""## 6 Security

DIMSE and DICOMweb run with or without TLS; without is the default for DIMSE, and the scheme of the URL decides for DICOMweb.
With TLS:

| item | value |
|---|---|
| versions | 1.2 and newer |
| cipher suites of TLS 1.2, as OpenSSL selects them | `{tls._CIPHERS}`; those of TLS 1.3 as OpenSSL has them |
| server's certificate | checked against the authority given, or the system's; must name the host unless that is switched off |
| our certificate as user | shown where one is configured |
| caller's certificate as provider | required, of the authority given |
| private keys | PEM, not encrypted |

The settings are modelled on the BCP 195 profiles of PS3.15 Annex B; formal conformance to one of them is not claimed.
An https URL without configured certificates keeps to the same table, and trusts the system's authorities and those that the
HTTP library brings. A bearer token for DICOMweb comes from an
environment variable, and in a site file only with https or to this machine itself. Audit trail messages (PS3.15 A.5) are not
written. This package puts no name, ID, birth date or accession number of a patient into messages and logs; paths of files
are shown as they are."""


def _media() -> str:
    syntaxes = (*AllTransferSyntaxes, *JPEG_PROGRESSIVE)
    return f"""## 7 Reading files

Files with preamble and File Meta Information are read, and those without. A file that ends before its data do is refused.

### Transfer syntaxes

{_table(("transfer syntax", "UID", "pixels"), [(uid.name, uid, _decoding(uid)) for uid in syntaxes])}

### What is read as image

Any SOP class with pixels and rows, single-frame, multi-frame with functional groups, or a Siemens mosaic: grey values of one
even stack in patient space, or one picture (grey, RGB, YBR or PALETTE COLOR) without it. At most {MAX_VOXELS} voxels.
Slices at one position are told apart by {", ".join(kept_attributes.DISTINGUISHING)}; by {kept_attributes.RUNNING_NUMBER} only
where nothing else does, and where it runs stack by stack or position by position.

Tolerated, and noted: slices off an even grid by up to {JITTER_SHARE:.0%} of the gap and {MAX_JITTER_MM:g} mm; a stack
that lacks slices beside whole ones, one of which is chosen; pictures in colour beside more grey slices; an instance twice,
where it differs in nothing that a volume or a result needs; files called VERSION, LOCKFILE, README or INDEX; grey JPEG
with losses under a transfer syntax without.

| set aside, read only if named | how it is recognised |
|---|---|
| localizer | Image Type; or few slices across the stack |
| secondary capture | SOP class |
| projection | Image Type |
| parametric map | SOP class; read as result, see below |

Refused: several time points without a choice, colour volumes, cine and other frames without position, uneven gaps and
missing slices (unless resampling is asked for), fewer images than the headers count (unless asked for), mixed orientations,
patients, studies or frames of reference, one SOP Instance UID with two contents, pixels that cannot be decoded,
UIDs of study, series, instance or frame of reference with more than 64 characters.

### What is read as result

Segmentation, Label Map Segmentation, RT Structure Set (CLOSED_PLANAR contours), Parametric Map, Encapsulated PDF;
Enhanced, Comprehensive, Comprehensive 3D and Extensible SR with imaging measurements by TID 1500. Other reports and
presentation states are not interpreted.

### Verdicts

What became of each series of the hazard matrix (`tests/hazards.py`) when this page was made. `tests/dicom_io/test_hazards.py`
holds the reader to it that what is read is right and that a refusal names the fault.

{_table(("series", "verdict"), _verdicts())}"""


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


def _created(found: Sequence[Example]) -> str:
    syntaxes = [(name, UID(uid).name, uid) for name, uid in SYNTAXES.items()]
    bases = [(kind.name, kind.series_number, "plus the source's SeriesNumber modulo 1000") for kind in BY_SERIES_NUMBER]
    return f"""## 8 Objects created

A result is a function of its input. UIDs are hashes of the source's SOP Instance UIDs, the bundle's digest, the settings and
the content, under pydicom's root; dates are the latest of the source; no clock is read. The same input gives the same bytes.
Every object but a Secondary Capture is read again before it gets its name, unless a caller of the library switches that off,
and deleted if it does not hold what was meant. A Secondary Capture is a picture with the labels, or a notice that a series was
not processed, made from one instance of it.

### Carried over

All result objects have the source's patient and study attributes verbatim, with its SpecificCharacterSet and
TimezoneOffsetFromUTC. {", ".join(identity.TYPE_2_KEYWORDS.split())} are supplied empty where the source lacks them; an
empty DeidentificationMethod becomes "Not named by the source". A sequence
with more than {patient_and_study.MAX_LEVELS} levels of items is left out.

- Patient: {", ".join(patient_and_study.PATIENT_KEYWORDS)}.
- Study: {", ".join(patient_and_study.STUDY_KEYWORDS)}.

### Series numbers

{_table(("kind", "SeriesNumber", ""), bases)}

What a person verified or corrected has a number that is {identity.BY_A_PERSON} higher, a series of its own and a
SeriesDescription that begins with VERIFIED or CORRECTED.

### What follows from a decision

- A verified report: VERIFIED and FINAL, with the reviewer in VerifyingObserverSequence, their comment as a last content item
  (121106, DCM, "Comment") with a person as its observer, and the unverified report in
  PredecessorDocumentsSequence.
- A corrected result: SEG (SegmentAlgorithmType SEMIAUTOMATIC, the reviewer in ContentCreatorName), a report measured anew,
  VERIFIED, which names the report before it as its predecessor, and RTSTRUCT, presentation state and captures where there
  were some.
- A rejection note (IHE RAD TF, Imaging Object Change Management): a Key Object Selection Document (TID 2010), (113001, DCM,
  "Rejected for Quality Reasons"), that references every object of the result, with the person as observer and the comment as
  (113012, DCM, "Key Object Description"). It is sent; none that comes in is acted on. A node also sends
  one for a version of a result that a later one has replaced at the destination, with a device as observer (TID 1004) and the
  same title.

### Encodings of a segmentation

{_table(("encoding", "transfer syntax", "UID"), syntaxes)}

Probabilities of a FRACTIONAL segmentation are stored in steps of 1/{STEPS}. All other result objects are written in
Explicit VR Little Endian.

### Attributes

The tables show an example of each kind, made from a classic MR series, or for the Color Softcopy Presentation State from an
RGB picture; both are computed results with the settings that the writers have by default. Of a sequence one item is shown.
"Type" is that of the module in PS3.3, empty for what the tables of modules do not list. "Copied from the source" and "of the
source" are what they say; "derived" is a UID of our own; "from the input" depends on source, labels or bundle; anything else
is the value itself. A presentation state has the source's own RescaleType, where it has one. The modules of patient and
study are left out.

{chr(10).join(_object(one) for one in found)}"""


def _object(one: Example) -> str:
    rows = [
        ("" if number else module, f"`{attribute}`", *more)
        for module, lines in one.rows.items()
        for number, (attribute, *more) in enumerate(lines)
    ]
    absent = f"\n\nMandatory modules without a written attribute: {', '.join(one.absent)}." if one.absent else ""
    return f"""#### {one.title}

{_named(one.sop_class_uid)}, here in {one.transfer_syntax_uid.name}.

{_table(("module", "attribute", "tag", "Type", "value"), rows)}{absent}
"""


def _character_sets() -> str:
    return """## 9 Character sets

Written objects keep the SpecificCharacterSet of their source, and its texts in that encoding; texts of our own are ASCII, which
fits all of them. Where a label, a description of a segment or the meaning of a code has other letters, objects are in
ISO_IR 192, with the source's texts converted, unless the source is in ISO_IR 100 and has the letters. Reading decodes what
pydicom decodes. A query with other than ASCII characters is sent in ISO_IR 192."""


def _codes() -> str:
    written = [
        (name.meaning, name.value, name.scheme_designator, unit.value)
        for name, unit in (*_measured(), *sr.INTENSITIES.values())
    ]
    procedures = [(modality, one.value, one.scheme_designator, one.meaning) for modality, one in sr.PROCEDURES.items()]
    return f"""## 10 Codes and templates

Codes of segments (category, type, anatomic region, modifiers) come from the bundle's segments.json, schema version
{coding.SCHEMA_MAJOR}, and are SNOMED CT (SCT). Others are of DCM, SCT, LN, IBSI and UCUM. No private coding scheme is used.

The report follows TID 1500, with one volumetric ROI group (TID 1411) a segment. Each whole that the
bundle's segments.json states has one more group, without a region (TID 1501), for the volume of its parts together. The
device is the observer (TID 1002, 1004).
The report is COMPLETE, PRELIMINARY and UNVERIFIED.

{_table(("measurement", "code", "scheme", "unit (UCUM)"), written)}

Intensities are given as mean and standard deviation, for {" and ".join(sr.INTENSITIES)}. The procedure reported is the source's
own code where it is of SCT, LN or RADLEX, else:

{_table(("modality", "code", "scheme", "meaning"), procedures)}"""


def _measured() -> list[tuple[Any, Any]]:
    """What `sr` measures in an example, as (name, unit): read from its own function."""
    found = sr._measurements(SegmentMeasures(1, 1, 1, 1, 1, None, None), "", None)
    return [(one.name, one.unit) for one in found]


def _deidentification() -> str:
    table = confidentiality_table.table()
    offered = [(name, code.value, code.meaning) for name, code in confidentiality_table.OPTIONS.items()]
    profile = confidentiality_table.PROFILE
    return f"""## 11 De-identification

{profile.meaning} ({profile.value}, DCM) of PS3.15 Annex E, Table E.1-1 of edition {table.edition} and rows of its basic
profile that were added until {table.later_edition}. PatientIdentityRemoved is YES; DeidentificationMethodCodeSequence names the
profile and the options used. Objects whose pixels, sound or document may name the patient are refused unless a caller has
looked.

{_table(("option", "code (DCM)", "meaning"), offered)}

{_table(("not offered", "why"), confidentiality_table.NOT_OFFERED.items())}"""


def _annex() -> str:
    classes = [(_name(uid), uid) for uid in association.storage_classes()]
    return f"""## Annex A: storage SOP classes accepted by the provider

{_table(("SOP class", "UID"), classes)}"""


if __name__ == "__main__":
    main()
