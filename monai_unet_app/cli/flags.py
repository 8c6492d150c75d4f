"""Types of flag values, and flags that several verbs share."""

import argparse
from collections.abc import Callable
from pathlib import Path


def given(text: str) -> str:
    """A text that is not empty: an unset variable of the shell is no name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("nothing is given; a name or path is needed")
    return text


def place(text: str) -> Path:
    """A path; the empty text is refused."""
    return Path(given(text))


def at_least(least: int) -> Callable[[str], int]:
    """A type of whole numbers that are not smaller than this."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; at least {least} is needed")
        return int(text)

    return number


def share(text: str) -> float:
    """A number between 0 and 1."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; a number between 0 and 1 is needed")
    return float(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not possible; a finite number above 0 is needed")
    return float(text)


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", help="SeriesInstanceUID, where a DICOM folder holds several")
    parser.add_argument(
        "--channels",
        default="",
        metavar="UID,UID",
        help="read these series of one frame of reference, in whatever folders, as channels on the grid of the first",
    )
    parser.add_argument(
        "--time-point", type=at_least(1), metavar="N", help="which of several time points or echoes, from 1"
    )
    add_repairs(parser)


def add_repairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resample-gaps", action="store_true", help="fill uneven gaps and missing slices by interpolation"
    )
    parser.add_argument(
        "--resample-tilt", action="store_true", help="put a tilted stack (gantry) onto a right-angled grid"
    )
    parser.add_argument(
        "--accept-incomplete",
        action="store_true",
        help="read a series that has fewer images than its headers count",
    )


def add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=place, help="folder of labels named as their images")
    parser.add_argument("--label-suffix", default="", help="what a label's name has that its image's has not")


def add_cases(parser: argparse.ArgumentParser, partitions: tuple[str, ...], usual: str) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data", type=place, help="folder with images/ and labels/, or DICOM series with SEG or RTSTRUCT"
    )
    where.add_argument("--images", type=place, help="folder of images, with --labels or --label-suffix")
    add_labels(parser)
    parser.add_argument("--splits", type=place, help="a splits.json for the cases that the bundle has not seen")
    parser.add_argument("--partition", choices=partitions, help=f"which cases of the plan (default: {usual})")


def add_comparison(parser: argparse.ArgumentParser, partitions: tuple[str, ...]) -> None:
    parser.add_argument("--common", action="store_true", help="take the cases that both have, leave the others out")
    add_cases(parser, partitions, "those that neither bundle has seen")
    parser.add_argument("--tta", action="store_true", help="average over mirror images")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, mps or cpu (default: what is there)")


def add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=given, required=True, help="AET@host:port, an http(s) URL, or a name in --site")
    parser.add_argument("--site", type=place, help="TOML file that describes destinations")
    parser.add_argument("--aet", type=given, help="our AE title (default: the site's, or MONAIUNET)")


def add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", type=given, help="Study Instance UID")
    parser.add_argument("--series", type=given, help="Series Instance UID; with --study")
    parser.add_argument("--patient-id", type=given, help="* and ? stand for any text")
    parser.add_argument("--patient-name", type=given, help="FAMILY^GIVEN; * and ? stand for any text")
    parser.add_argument("--accession", type=given, help="accession number")
    parser.add_argument("--date", type=given, help="of the study: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD")
    parser.add_argument("--modality", type=given, help="MR, CT, SEG, ...")
