"""A bundle of `kind: results`: what the label files of another program are worth. It has statements and no network."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import CONFIDENCE, EXTERNAL, RESULTS, BundleFiles, bundle_root, kind_of
from monai_unet_app.data.digest import place_among
from monai_unet_app.data.probability_files import tempered
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import BundleError, InputRefusedError

from .assessment import Assessment, assess
from .label_features import features_of_image
from .statements import STATEMENTS, Confidence

SEGMENTS = "configs/segments.json"
TEMPERATURE = "configs/temperature.json"
COMMAND = "configs/external.json"
"""How the program is started; only in a bundle of `kind: external`."""

FITTED_ON = "configs/fitted_on.json"
"""The cases that its statements were fitted to, and the fingerprint of the image of each."""


@dataclass(frozen=True)
class Program:
    """Who made label files: a program and its version, or a person.

    Attributes:
        name: Of the program, 1 to 64 characters; of the person's program, or "manual".
        version: Its version, 1 to 64 characters.
    """

    name: str
    version: str

    @property
    def sha256(self) -> str:
        """Hex digest of name and version."""
        return hashlib.sha256(f"{self.name}\n{self.version}".encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class ResultsBundle(BundleFiles):
    """Its files."""

    @cached_property
    def program(self) -> Program:
        """Whose label files it was fitted to. Raises BundleError if the metadata do not say it."""
        with self._needed():
            return Program(self.metadata["program"]["name"], self.metadata["program"]["version"])

    @cached_property
    def values(self) -> list[int]:
        """The label value of each structure, in the order of their numbers. Raises BundleError if the metadata lack them."""
        with self._needed():
            values = [int(value) for value in self.metadata["structure_values"]]
            if len(values) != len(self.segments):
                raise ValueError(f"{len(values)} values of {len(self.segments)} structures")
            return values

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the files that its statements are in, and of what they are about."""
        digest = hashlib.sha256(json.dumps([str(self.program), self.values]).encode())
        with self._needed():
            more = [name for name in (TEMPERATURE, COMMAND) if (self.root / name).is_file()]
            for name in (SEGMENTS, CONFIDENCE, *more):
                digest.update((self.root / name).read_bytes())
        return digest.hexdigest()

    @cached_property
    def temperature(self) -> float | None:
        """By what it divides the logarithms of the program's probabilities; None if it was fitted to labels alone."""
        if not (self.root / TEMPERATURE).is_file():
            return None
        with self._needed():
            return float(json_of(self.root / TEMPERATURE)["temperature"])

    def calibrated(self, segmentation: Segmentation, program: Program) -> Segmentation:
        """The result of one image by a program, with calibrated probabilities; as it is if it was fitted to another program.

        Raises:
            InputRefusedError: It has probabilities and the bundle was fitted without, or the other way round.
        """
        if (segmentation.probabilities is None) != (self.temperature is None):
            was, has = ("with", "has none") if self.temperature else ("without", "has them")
            raise InputRefusedError(
                f"{self.name} was fitted {was} probabilities, and the result {has}; what is stated holds for the same kind of "
                f"files; {'give' if self.temperature else 'leave out'} --probabilities"
            )
        is_other = program.sha256 != self.program.sha256
        if segmentation.probabilities is None or self.temperature is None or is_other:
            return segmentation
        return replace(segmentation, probabilities=tempered(np.asarray(segmentation.probabilities), self.temperature))

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Of the images that it was fitted to results of."""
        with self._needed():
            return [case["image"] for case in json_of(self.root / FITTED_ON)["cases"].values()]

    def has_seen(self, image: Volume) -> bool:
        """Whether it was fitted to a result of this image, mirrored or not. Raises BundleError if its record is damaged."""
        return place_among(image, self._fingerprints) is not None

    @contextmanager
    def _needed(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{self.name} cannot be used ({type(error).__name__}: {error}); the whole folder that monai-unet calibrate "
                "--results wrote is needed; copy it again"
            ) from error

    def confidence_about(self, program: Program) -> Confidence:
        """The statements about label files of a program; none, with the reason, where they were fitted to another.

        Raises:
            BundleError: Its confidence.json is damaged, or belongs to other structures.
        """
        try:
            document = self.confidence_document
            entry = (document or {})["settings"]["plain"]
            if entry["fitted_to"] != self.fitted_to(self.program):
                raise ValueError("it was fitted to other structures or another program")
            stated = Confidence.from_document(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{self.name}: {CONFIDENCE} cannot be used ({error}); copy the bundle again, or make it again by "
                "monai-unet calibrate --results"
            ) from error
        if program.sha256 == self.program.sha256:
            return stated
        reason = f"{self.name} was fitted to results of {self.program}, these are of {program}"
        return Confidence(why_not=dict.fromkeys(STATEMENTS, reason))

    def assessed(self, segmentation: Segmentation, program: Program) -> Assessment:
        """What is stated of the labels of one image by a program. Raises BundleError as `confidence_about`."""
        confidence = self.confidence_about(program)
        features = features_of_image(segmentation.image) if confidence.shift else None
        assessment = assess(confidence, segmentation, features)
        return replace(assessment, overridden=program.sha256 != self.program.sha256)

    def fitted_to(self, program: Program) -> Mapping[str, str]:
        """What its statements depend on: the structures with their label values, and the program."""
        names = json.dumps([list(self.structure_names), self.values])
        return {SEGMENTS: hashlib.sha256(names.encode()).hexdigest(), "program": program.sha256}


def results_bundle(name: str | Path) -> ResultsBundle | None:
    """The bundle that a name, a folder or a zip stands for, if it is one of results; None for one with a network.

    Raises:
        UsageError, BundleError: As `bundle_files`.
    """
    root = bundle_root(str(name))
    return ResultsBundle(root) if kind_of(root) in (RESULTS, EXTERNAL) else None


def metadata_of(program: Program, values: list[int], subjects: int, cases: int) -> dict[str, Any]:
    """`configs/metadata.json` of a new bundle of results."""
    return {
        "version": "0.1.0",
        "kind": RESULTS,
        "task": f"what results of {program} are worth",
        "program": {"name": program.name, "version": program.version},
        "structure_values": values,
        "fitted_on": {"subjects": subjects, "cases": cases, "unseen": "as its user said"},
        "changelog": {"0.1.0": "fitted to label files"},
    }
