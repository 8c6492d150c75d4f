"""The flags of each verb: long and kebab-case. Its help and its example are the docstring of its function."""

import argparse
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

from monai_unet_app import __version__
from monai_unet_app.cli import calibrate_verb, comparison_verbs, dicom_verbs, verbs
from monai_unet_app.cli.common import Answer
from monai_unet_app.cli.flags import (
    above_zero,
    add_cases,
    add_comparison,
    add_destination,
    add_device,
    add_labels,
    add_query,
    add_reading,
    at_least,
    given,
    place,
    share,
)
from monai_unet_app.cli.service_parser import add_service_verbs

Verb = Callable[[Callable[[argparse.Namespace], Answer]], argparse.ArgumentParser]
"""Makes the parser of a verb from its function."""


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their flags."""
    parser = argparse.ArgumentParser(
        prog="monai-unet",
        description="Train U-Nets as MONAI bundles; segment, measure and deliver with them.",
        epilog="First steps: `monai-unet demo --output demo`, then open demo/report/report.html.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(run: Callable[[argparse.Namespace], Answer]) -> argparse.ArgumentParser:
        # python -OO leaves no docstrings: the verbs then work without help
        summary, example = (
            " ".join(part.split()) for part in inspect.cleandoc(run.__doc__ or "\n\n").partition("\n\n")[::2]
        )
        sub = subparsers.add_parser(
            run.__name__,
            help=summary[:1].lower() + summary[1:].removesuffix("."),
            description=textwrap.fill(summary, 78),
            epilog=textwrap.fill(
                example[:1].lower() + example[1:],
                78,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            ),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        sub.set_defaults(run=run)
        return sub

    for add_verb in (*_BUNDLE_VERBS, *_DICOM_VERBS):
        add_verb(verb)
    add_service_verbs(verb)
    verb(verbs.bundles)
    verb(verbs.doctor)
    return parser


def _demo(verb: Verb) -> None:
    parser = verb(verbs.demo)
    parser.add_argument("--output", type=place, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--epochs", type=at_least(1), default=6, help="length of the training (default: 6)")


def _dicomize(verb: Verb) -> None:
    parser = verb(verbs.dicomize)
    parser.add_argument("--images", type=place, required=True, help="a NIfTI file, or a folder of them")
    parser.add_argument("--bundle", help="whose segments.json says what the label values mean; needed with labels")
    add_labels(parser)
    parser.add_argument("--output", type=place, required=True, help="gets one folder for each case")
    parser.add_argument(
        "--modality", choices=["MR", "CT"], default="MR", help="what the images are; CT: values in HU (default: MR)"
    )


def _regions(verb: Verb) -> None:
    parser = verb(verbs.regions)
    parser.add_argument("structure_set", metavar="RTSTRUCT", type=place, help="a structure set, by whatever software")
    parser.add_argument("--image", type=place, required=True, help="the series that it was drawn on")
    parser.add_argument(
        "--roi", nargs="+", required=True, metavar="NAME",
        help="ROIName: the first becomes label 1, and so on; where two overlap, the later one counts",
    )  # fmt: skip
    parser.add_argument("--output", type=place, required=True, help="label file, .nrrd or .mha")
    add_reading(parser)


def _inspect(verb: Verb) -> None:
    parser = verb(verbs.inspect)
    parser.add_argument(
        "data", type=place, help="images/ and labels/ in a folder, a folder of images, DICOM, or one file"
    )
    parser.add_argument("--bundle", help="also hold every case to this bundle's input rules and labels")
    add_labels(parser)
    add_reading(parser)


def _train(verb: Verb) -> None:
    parser = verb(verbs.train)
    flag = parser.add_argument
    flag("--bundle", type=given, required=True, help="template: a name, a folder or a zip")
    flag(
        "--data",
        "--images",
        dest="data",
        type=place,
        required=True,
        help="folder with images/ and labels/, or images (then --labels), or DICOM series with SEG or RTSTRUCT",
    )
    add_labels(parser)
    flag("--output", type=place, required=True, help="the trained bundle; an unfinished run in it goes on")
    flag("--name", type=given, help="of the new bundle, in its card (default: its folder's name)")
    flag("--splits", type=place, help="who trains, selects, calibrates and tests (splits.json)")
    flag("--fold", type=int, choices=range(5), help="cross-validation: this fold of the plan tests")
    flag("--epochs", type=at_least(1), help="length of the training (default: the bundle's)")
    flag("--seed", type=at_least(0), help="of windows, augmentation and weights (default: the bundle's)")
    flag("--learning-rate", type=above_zero, help="largest learning rate (default: the bundle's)")
    flag("--precision", choices=("auto", "bf16", "f32"), help="auto: bf16 where the device computes it fast")
    flag("--workers", type=at_least(0), help="processes that augment (default: 0, in the training process)")
    flag("--tracking", choices=("tensorboard", "mlflow", "none"), help="where curves go (default: tensorboard)")
    add_device(parser)


def _calibrate(verb: Verb) -> None:
    parser = verb(calibrate_verb.calibrate)
    parser.add_argument(
        "--bundle", type=given, required=True, help="folder of the bundle; its inference.yaml is rewritten"
    )
    add_cases(parser, ("calibration", "test", "all"), "calibration")
    parser.add_argument(
        "--folds",
        type=place,
        nargs="+",
        default=[],
        help="bundles of a cross-validation, which say how far sizes are off",
    )
    parser.add_argument(
        "--form",
        choices=("keep", "compare", "choose"),
        default="keep",
        help="how the temperature depends on a voxel: as the bundle has it; or all known forms compared on selection cases, "
        "and nothing else done; or the best of them taken (default: keep)",
    )
    parser.add_argument("--tta", action="store_true", help="state also what holds for averages over mirror images")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="keep what is fitted on fewer than 10 subjects without checking that it helps subjects left out",
    )
    parser.add_argument("--coverage", type=share, default=0.9, help="of intervals and bounds (default: 0.9)")
    parser.add_argument("--risk", type=share, default=0.1, help="part that a cautious mask may miss (default: 0.1)")
    add_device(parser)


def _evaluate(verb: Verb) -> None:
    parser = verb(verbs.evaluate)
    parser.add_argument("--bundle", type=given, required=True, help="a name, a folder or a zip")
    add_cases(parser, ("train", "selection", "calibration", "test", "all"), "only those that the bundle has not seen")
    parser.add_argument("--output", type=place, required=True, help="folder for the report")
    parser.add_argument(
        "--targets", type=place, help="TOML file with what should be reached (default: the bundle's own, or usual ones)"
    )
    parser.add_argument("--tta", action="store_true", help="average over mirror images")
    add_device(parser)


def _report(verb: Verb) -> None:
    parser = verb(verbs.report)
    parser.add_argument("--evaluation", type=place, required=True, help="folder that evaluate wrote")
    parser.add_argument(
        "--bundle", type=given, required=True, help="folder of the bundle; configs/metadata.json, docs/README.md change"
    )


def _compare(verb: Verb) -> None:
    parser = verb(comparison_verbs.compare)
    what = "folder that evaluate wrote, or with --data a bundle: a name, a folder or a zip"
    parser.add_argument("--first", type=given, required=True, help=what)
    parser.add_argument("--second", type=given, required=True, help="the same; differences are second minus first")
    add_comparison(parser, ("test", "all"))
    parser.add_argument("--output", type=place, help="gets comparison.json, comparison.csv and new evaluations")


def _gate(verb: Verb) -> None:
    parser = verb(comparison_verbs.gate)
    parser.add_argument("--bundle", type=given, metavar="NEW", help="a name, a folder or a zip; needs --data")
    parser.add_argument("--evaluation", type=place, metavar="NEW", help="its evaluation, instead")
    parser.add_argument("--against", type=given, metavar="OLD", help="the bundle that is in use; needs --data")
    parser.add_argument("--against-evaluation", type=place, metavar="OLD", help="its evaluation, instead")
    parser.add_argument(
        "--margin",
        help="non-inferiority: how much worse it must be shown not to be; a number, or dice=0.01,ece_band=0.002 "
        "(default: none, it must not be shown to be worse)",
    )
    add_comparison(parser, ("test",))
    parser.add_argument("--output", type=place, help="gets comparison.json, comparison.csv and new evaluations")


def _subgroups(verb: Verb) -> None:
    parser = verb(comparison_verbs.subgroups)
    flag = parser.add_argument
    flag("--evaluation", type=place, required=True, help="folder that evaluate wrote")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--attributes", type=place, help="CSV: a column case or subject, and one for each attribute")
    where.add_argument("--dicom", type=place, help="the cases' DICOM series, whose headers say age, sex, device, ...")
    flag("--institution", choices=("numbered", "named"), help="with --dicom: group by institution too (default: not)")
    flag(
        "--bands",
        type=given,
        action="append",
        default=[],
        metavar="NAME=EDGE,EDGE,...",
        help="cut a column of numbers here (default: age 0,40,60,80; others into thirds); may be repeated",
    )
    flag("--fewest", type=at_least(2), default=5, help="groups with fewer subjects get no figures (default: 5)")
    flag("--class", dest="class_name", type=given, default="mean", help="a class (default: mean)")
    flag("--output", type=place, help="gets subgroups.json and subgroups.csv")


def _predict(verb: Verb) -> None:
    parser = verb(verbs.predict)
    flag = parser.add_argument
    flag("--bundle", type=given, required=True, help="a name, a folder or a zip")
    flag("--input", type=place, required=True, help="NIfTI, DICOM file or folder, picture, or a folder of cases")
    flag("--output", type=place, required=True, help="folder for the results")
    flag(
        "--format",
        help="comma-separated: nifti, nrrd, mha, png, and DICOM: seg, sr, rtstruct, gsps (outlines), sc (pictures), "
        "pm (uncertainty) (default: nifti)",
    )
    flag(
        "--seg-encoding",
        choices=("binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional"),
        metavar="HOW",
        help="%(choices)s: how a SEG stores its frames; every viewer shows binary (the default)",
    )
    flag(
        "--for",
        dest="destination",
        type=given,
        metavar="NAME",
        help="write what this destination of --site wants, as it wants it; instead of --format and --seg-encoding",
    )
    flag("--site", type=place, help="TOML file that describes destinations")
    flag("--probabilities", action="store_true", help="add <case>_prob.nii.gz, channels last")
    flag("--cautious", action="store_true", help="add <case>_cautious.nii.gz, masks that miss little, channels last")
    flag(
        "--explain",
        choices=("occlusion", "gradcam", "gradient"),
        metavar="METHOD",
        help="%(choices)s: add <case>_why.png and <case>_why.nii.gz, what in the image the result hangs on; takes longer",
    )
    flag("--deliver-rejected", action="store_true", help="write results that the bundle's quality gate rejects as well")
    flag("--dicom-source", type=place, help="the DICOM series that a NIfTI input was made from")
    flag("--dicomize", action="store_true", help="write a converted DICOM series for a NIfTI input")
    add_reading(parser)
    flag("--tta", action="store_true", help="average over mirror images")
    add_device(parser)


def _echo(verb: Verb) -> None:
    parser = verb(dicom_verbs.echo)
    add_destination(parser)


def _send(verb: Verb) -> None:
    parser = verb(dicom_verbs.send)
    parser.add_argument("files", type=place, nargs="+", help="DICOM files, or folders however deep")
    add_destination(parser)
    parser.add_argument(
        "--commit", action="store_true", help="then ask the node to say that it keeps what it has (storage commitment)"
    )
    parser.add_argument(
        "--listen",
        type=given,
        help="with --commit: PORT or HOST:PORT at which the node knows us and reports (default: that of --site; else it must "
        "report over the association that asks)",
    )
    parser.add_argument(
        "--wait-s", type=above_zero, default=60.0, help="with --commit: seconds to wait for the report (default: 60)"
    )


def _find(verb: Verb) -> None:
    parser = verb(dicom_verbs.find)
    add_destination(parser)
    parser.add_argument(
        "--level",
        choices=("study", "series", "image"),
        default="study",
        help="series needs --study, image needs --study and --series (default: study)",
    )
    add_query(parser)
    parser.add_argument("--limit", type=at_least(0), default=200, help="most answers; 0: all (default: 200)")
    parser.add_argument("--patients", action="store_true", help="show names and IDs of patients in the table")


def _fetch(verb: Verb) -> None:
    parser = verb(dicom_verbs.fetch)
    add_destination(parser)
    add_query(parser)
    parser.add_argument("--instance", type=given, help="SOP Instance UID; with --study and --series")
    parser.add_argument("--output", type=place, required=True, help="gets <study>/<series>/<instance>.dcm")
    parser.add_argument(
        "--move", type=given, help="PORT or HOST:PORT to listen on: by C-MOVE, which the archive must know us for"
    )


def _deidentify(verb: Verb) -> None:
    flag = verb(dicom_verbs.deidentify).add_argument
    flag("--input", type=place, nargs="+", required=True, help="DICOM files, or folders however deep")
    flag("--output", type=place, required=True, help="gets <study>/<series>/<instance>.dcm")
    flag("--key-file", type=place, help="same key, same new UIDs; made where absent (default: a key that is forgotten)")
    flag(
        "--options",
        default="",
        help="comma-separated: retain-uids, retain-device-identity, retain-institution-identity, "
        "retain-patient-characteristics, retain-full-dates or retain-modified-dates, clean-structured-content",
    )
    flag("--allow-burned-in", action="store_true", help="write what may show a name in its pixels: someone has looked")


_BUNDLE_VERBS = (
    _demo, _dicomize, _regions, _inspect, _train, _calibrate, _evaluate, _report, _compare, _gate, _subgroups, _predict,
)  # fmt: skip
_DICOM_VERBS = (_echo, _send, _find, _fetch, _deidentify)
