"""The flags of the verbs of the service and of its results; see `parser`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from monai_unet_app.cli import service_verbs
from monai_unet_app.cli.common import Answer
from monai_unet_app.cli.flags import add_reading, add_repairs, given, place

Verb = Callable[[Callable[[argparse.Namespace], Answer]], argparse.ArgumentParser]


def add_service_verbs(verb: Verb) -> None:
    """node, token, commission, review, trace, audit, package."""
    _node(verb)
    _token(verb)
    _commission(verb)
    _review(verb)
    _trace(verb)
    _audit(verb)
    _package(verb)


def _node(verb: Verb) -> None:
    parser = verb(service_verbs.node)
    parser.add_argument(
        "--config", type=place, required=True, help="the site's file: [node], [[rules]], [destinations.NAME]"
    )
    parser.add_argument(
        "--new-audit-key",
        action="store_true",
        help="the key of the audit trail is lost for good: make a new key, and record that in the trail",
    )


def _audit(verb: Verb) -> None:
    parser = verb(service_verbs.audit)
    parser.add_argument(
        "action", choices=["verify"], help="follow the chain of digests from the first line to the last"
    )
    parser.add_argument("trail", type=place, help="audit.jsonl in the node's folder")
    parser.add_argument(
        "--key", type=place, help="the key that signs the trail (default: audit.key beside the trail, if it exists)"
    )
    parser.add_argument(
        "--database",
        type=place,
        help="the node's database, which records the end of the trail (default: node.sqlite beside the trail)",
    )


def _token(verb: Verb) -> None:
    parser = verb(service_verbs.token)
    parser.add_argument("--name", type=given, required=True, help="the holder of the token, named in the audit trail")
    parser.add_argument(
        "--roles", type=given, default="read", help="comma-separated: metrics, submit, read, reviewer, admin"
    )
    parser.add_argument("--days", type=int, default=365, help="days for which the token is valid (default: 365)")


def _commission(verb: Verb) -> None:
    parser = verb(service_verbs.commission)
    parser.add_argument("--config", type=place, help="the site's file; its node should be running")
    parser.add_argument(
        "--output", type=place, default=Path("acceptance"), help="folder for JSON and PDF (default: acceptance)"
    )
    parser.add_argument(
        "--key", type=place, default=Path("site.pem"), help="Ed25519 key, made where absent (default: site.pem)"
    )
    parser.add_argument(
        "--holder", type=given, default="whoever ran this", help="who keeps the key, named in the report"
    )
    parser.add_argument("--no-node", action="store_true", help="check the destinations only")
    parser.add_argument(
        "--calling-ae-title",
        type=given,
        default="COMMISSION",
        help="AE title under which the node is called; one of its senders (default: COMMISSION)",
    )
    parser.add_argument("--node-host", type=given, help="the node's address (default: that of the site file)")
    parser.add_argument(
        "--example",
        type=given,
        action="append",
        default=[],
        metavar="RULE=PATH",
        help="image for a rule: NIfTI, or a DICOM series, which is de-identified (default: a shipped example case)",
    )
    parser.add_argument(
        "--header",
        type=given,
        action="append",
        default=[],
        metavar="RULE.KEYWORD=VALUE",
        help="value of a header that matches a rule, if no value can be made from its pattern",
    )
    parser.add_argument("--limit-min", type=float, default=10.0, help="time limit of all checks (default: 10)")
    parser.add_argument("--verify", type=place, metavar="JSON", help="only say whether a report is as it was signed")


def _trace(verb: Verb) -> None:
    parser = verb(service_verbs.trace)
    parser.add_argument("file", type=place, help="a SEG, SR or other object that monai-unet wrote")
    parser.add_argument(
        "--audit", type=place, help="audit trail of the node that made it: adds what it did with the study"
    )


def _review(verb: Verb) -> None:
    parser = verb(service_verbs.review)
    parser.add_argument(
        "--result", type=place, required=True, help="a result.json with its files beside it, or their folder"
    )
    parser.add_argument("--input", type=place, help="the image that the result was made from")
    parser.add_argument(
        "--output", type=place, required=True, help="folder for the page, or for the files that follow from a verdict"
    )
    parser.add_argument(
        "--bundle", type=given, help="the bundle that made the result, for its colours and its measured calibration"
    )
    parser.add_argument("--prior", type=place, help="an earlier result.json of the same patient, for comparing sizes")
    parser.add_argument(
        "--same-patient",
        action="store_true",
        help="you have compared patient ID and date of birth of both images: the page says so beside --prior",
    )
    parser.add_argument("--post-url", type=given, help="where the page sends a decision (default: it saves a draft)")
    parser.add_argument(
        "--most-mb", type=float, default=60.0, help="the most megabytes of images in the page (default: 60)"
    )
    parser.add_argument("--without-identity", action="store_true", help="do not name patient and study")
    parser.add_argument("--no-pdf", action="store_true", help="write the page only")
    parser.add_argument("--apply", type=place, metavar="VERDICT", help="apply the verdict that a page saved")
    parser.add_argument("--reviewer", help="the person responsible for the verdict, as Family^Given")
    parser.add_argument("--organization", help="the organization of the reviewer")
    parser.add_argument("--correction", type=place, help="the corrected mask: NIfTI, SEG or RTSTRUCT")
    parser.add_argument(
        "--delivered",
        action="store_true",
        help="the result is in an archive: if the verdict rejects it, write a rejection note",
    )
    parser.add_argument(
        "--superseded",
        type=place,
        action="append",
        default=[],
        metavar="FOLDER",
        help="an earlier version of the result that is in an archive: the note also rejects it; may be repeated",
    )
    parser.add_argument(
        "--variants",
        type=place,
        metavar="FOLDER",
        help="subfolders with the same result, written in several ways",
    )
    parser.add_argument("--training", type=place, help="folder that keeps a corrected case to train on")
    parser.add_argument("--subject", help="pseudonym of the patient in that folder (default: one of the study)")
    add_reading(parser)


def _package(verb: Verb) -> None:
    parser = verb(service_verbs.package)
    parser.add_argument("--bundle", type=given, required=True, help="a name, a folder or a zip")
    parser.add_argument("--output", type=place, required=True, help="folder for the package; must not exist")
    parser.add_argument(
        "--format", help="comma-separated, as of predict (default: seg,sr; of a bundle for pictures seg)"
    )
    parser.add_argument("--seg-encoding", help="as of predict")
    parser.add_argument("--tta", action="store_true", help="average over mirror images")
    parser.add_argument("--probabilities", action="store_true", help="as of predict, and so are the next three")
    parser.add_argument("--cautious", action="store_true")
    parser.add_argument("--explain", metavar="METHOD")
    parser.add_argument("--deliver-rejected", action="store_true")
    add_repairs(parser)
    parser.add_argument("--memory", help="memory of a run, as Kubernetes writes it (default: 4Gi)")
    parser.add_argument("--gpu-memory", help="memory of the GPU (default: 4Gi)")
