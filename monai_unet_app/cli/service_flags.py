"""The flags of the verbs of the service and of its results, one class for each verb; see `flags`."""

from dataclasses import field
from pathlib import Path
from typing import Annotated

from monai_unet_app.cli.dataclass_parser import Flag, Options, repeated
from monai_unet_app.cli.flag_types import Place, Text
from monai_unet_app.cli.flags import Reading, Repairs, Trust


class RunNode(Options):
    """Flags of `node`.

    Attributes:
        config: the site's file: [node], [[rules]], [destinations.NAME]
        otlp: address for OpenTelemetry spans of the stages, such as http://127.0.0.1:4318/v1/traces (default: none)
        new_audit_key: make a new key, because the key of the audit trail is lost, and record that in the trail
    """

    config: Place | None = None
    otlp: Text | None = None
    new_audit_key: bool = False


class Token(Options):
    """Flags of `node token`.

    Attributes:
        name: the holder of the token, named in the audit trail
        roles: comma-separated: metrics, submit, read, reviewer, approver, admin
        days: days for which the token is valid (default: 365)
    """

    name: Text
    roles: Text = "read"
    days: int = 365


class Commission(Options):
    """Flags of `node commission`.

    Attributes:
        config: the site's file; its node should be running
        output: folder for JSON and PDF (default: acceptance)
        key: Ed25519 key, made if absent (default: site.pem)
        holder: who keeps the key, named in the report
        no_node: check the destinations only
        calling_ae_title: AE title under which the node is called; one of its senders (default: COMMISSION)
        node_host: the node's address (default: that of the site file)
        example: image for a rule, or for RULE.CHANNEL: NIfTI, or a DICOM series, which is de-identified (default: a shipped
            example case)
        header: value of a header that matches a rule, if no value can be made from its pattern
        limit_min: time limit of all checks (default: 10)
        verify: only check that a report is as it was signed
    """

    config: Place | None = None
    output: Place = Path("acceptance")
    key: Place = Path("site.pem")
    holder: Text = "whoever ran this"
    no_node: bool = False
    calling_ae_title: Text = "COMMISSION"
    node_host: Text | None = None
    example: Annotated[list[Text], repeated("RULE=PATH")] = field(default_factory=list)
    header: Annotated[list[Text], repeated("RULE.KEYWORD=VALUE")] = field(default_factory=list)
    limit_min: float = 10.0
    verify: Annotated[Place | None, Flag(metavar="JSON")] = None


class Trace(Options):
    """Flags of `trace`.

    Attributes:
        file: a SEG, SR or other object that monai-unet wrote
        audit: audit.jsonl in the folder of the node that made it: adds the records of the study; without a file: check that
            the trail is unchanged, from the first line to the last
        key: with --audit alone: the key that signs the trail (default: audit.key beside the trail, if it exists)
        database: with --audit alone: the node's database, which records the end of the trail (default: node.sqlite beside it)
    """

    file: Annotated[Place | None, Flag(names=("file",), nargs="?")] = None
    audit: Annotated[Place | None, Flag(metavar="TRAIL")] = None
    key: Place | None = None
    database: Place | None = None


class Review(Reading):
    """Flags of `review`.

    Attributes:
        result: a result.json with its files beside it, or their folder
        input: the image that the result was made from (default: the series that predict --dicomize made of it)
        output: folder for the page, or for the files that follow from a decision
        bundle: the bundle that made the result, for its colours and its measured calibration
        prior: an earlier result.json of the same patient, for comparing sizes
        same_patient: you have compared patient ID and date of birth of both images: the page says so beside --prior
        post_url: where the page sends a decision (default: it saves a draft)
        most_mb: the most megabytes of images in the page (default: 60)
        without_identity: do not name patient and study
        no_pdf: write the page only
        apply: apply the decision that a page saved
        reviewer: the person responsible for the decision, as Family^Given
        organization: the organization of the reviewer
        correction: the corrected mask: NIfTI, SEG or RTSTRUCT
        delivered: the result is in an archive: if the decision rejects it, write a rejection note
        superseded: an earlier version of the result that is in an archive: the note also rejects it; may be repeated
        variants: subfolders with the same result, written in several ways
        training: folder that keeps a corrected case to train on
        subject: pseudonym of the patient in that folder (default: one of the study)
    """

    result: Place
    input: Place | None = None
    output: Place
    bundle: Text | None = None
    prior: Place | None = None
    same_patient: bool = False
    post_url: Text | None = None
    most_mb: float = 60.0
    without_identity: bool = False
    no_pdf: bool = False
    apply: Annotated[Place | None, Flag(metavar="DECISION")] = None
    reviewer: str | None = None
    organization: str | None = None
    correction: Place | None = None
    delivered: bool = False
    superseded: Annotated[list[Place], repeated("FOLDER")] = field(default_factory=list)
    variants: Annotated[Place | None, Flag(metavar="FOLDER")] = None
    training: Place | None = None
    subject: str | None = None


class Package(Repairs, Trust):
    """Flags of `package`.

    Attributes:
        bundle: a name, a folder or a zip
        output: folder for the package; must not exist
        format: comma-separated, as of predict (default: seg,sr; of a bundle for pictures seg)
        seg_encoding: as of predict
        tta: average over mirror images
        elsewhere: as of predict
        probabilities: as of predict
        cautious: as of predict
        explain: as of predict
        deliver_rejected: as of predict
        memory: memory of a run, as Kubernetes writes it (default: 4Gi)
        gpu_memory: memory of the GPU (default: 4Gi)
    """

    bundle: Text
    output: Place
    format: str | None = None
    seg_encoding: str | None = None
    tta: bool = False
    elsewhere: bool = False
    probabilities: bool = False
    cautious: bool = False
    explain: Annotated[str | None, Flag(metavar="METHOD")] = None
    deliver_rejected: bool = False
    memory: str | None = None
    gpu_memory: str | None = None
