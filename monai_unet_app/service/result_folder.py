"""The folder of a result: in which ways its objects are written, and how it is known that they are still the same."""

import hashlib
from pathlib import Path

from dicom_io.net.destination import Destination, Profile
from monai_unet_app.service.site import Rule, Site


def variants(rule: Rule, site: Site) -> dict[str, Profile]:
    """Name of each way in which a result is to be written, with the profile of the first destination that wants it so.

    Destinations differ in how they want a SEG. Where each wants probabilities, or there is none, labels are written in the way
    "binary", too: reviewers and comparisons need them.
    """
    by_variant: dict[str, Profile] = {}
    for name in rule.destinations:
        destination = site.destinations[name]
        by_variant.setdefault(variant_of(destination), destination.profile)
    if all(profile.seg_encoding == "fractional" for profile in by_variant.values()):
        by_variant["binary"] = Profile()
    return by_variant


def variant_of(destination: Destination) -> str:
    """Name of the folder with what is written for a destination."""
    profile = destination.profile
    return (profile.seg_encoding or "binary") + ("-all-frames" if profile.empty_frames else "")


def result_files(folder: Path) -> list[Path]:
    """A result's DICOM objects, or its NIfTI files if it has no DICOM object."""
    return sorted(folder.rglob("*.dcm")) or sorted(folder.rglob("*.nii.gz"))


def digest_of(folder: Path) -> str:
    """sha256 of the names and contents of a result's files, see `result_files`. `result.json` does not count: it has times."""
    digest = hashlib.sha256()
    for path in result_files(folder):
        # Name, NUL and a digest of fixed length: no two folders give the same bytes to hash.
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
