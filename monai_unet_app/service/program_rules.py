"""Rules whose bundle starts a program of somebody else: how a series becomes a result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_io.net.destination import Profile
from monai_unet_app.external import ExternalBundle, Surroundings, check_version, labels_of
from monai_unet_app.label_results import write_label_results
from monai_unet_app.service.site import Rule, Site

if TYPE_CHECKING:
    from dicom_io.volume import Volume


@dataclass(frozen=True)
class ProgramRule:
    """A rule whose bundle starts a program.

    Attributes:
        rule: The rule.
        site: Its site.
        bundle: Its bundle.
        memory_bytes: What program and worker may take together.
    """

    rule: Rule
    site: Site
    bundle: ExternalBundle
    memory_bytes: float

    @property
    def surroundings(self) -> Surroundings:
        """Where the program runs."""
        isolated = self.rule.network == "none"
        return Surroundings(**vars(self.site.external), memory_bytes=self.memory_bytes, isolated=isolated)

    def check_program(self) -> None:
        """Raises AppError if the program is not there or is of another version than the one that was fitted."""
        self.site.node.folder.mkdir(parents=True, exist_ok=True)
        check_version(self.bundle, self.surroundings, self.site.node.folder)

    def write(
        self, image: "Volume", name: str, folder: Path, variants: Mapping[str, Profile], earlier: Path | None
    ) -> tuple[str, str]:
        """Runs the program on a series, and writes the result in each way that a destination wants.

        Args:
            image: The voxels of the series.
            name: Beginning of the files' names.
            folder: Gets a folder for each way.
            variants: Name of each way -> the profile that wants it.
            earlier: Folder of the results of an earlier version of the series.

        Returns:
            Verdict of the quality gate, empty without one, and its reasons.

        Raises:
            AppError: As `labels_of` and `write_label_results`.
        """
        made = {}
        with labels_of(image, self.bundle, self.surroundings, folder.parent) as labels:
            for variant, profile in variants.items():
                request = replace(
                    labels, output=folder / variant, stem=name, formats=self.rule.formats, deliver_rejected=True,
                    encoding=profile.seg_encoding or "binary", empty_frames=profile.empty_frames,
                    earlier_sr=earlier / variant / f"{name}_sr.dcm" if earlier else None,
                )  # fmt: skip
                made = write_label_results(request)["result"]
        assessment = made["assessment"] or {}
        return assessment.get("verdict") or "", "; ".join(assessment.get("reasons", ()))
