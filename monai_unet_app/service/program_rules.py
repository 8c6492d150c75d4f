"""Rules whose bundle starts a program of somebody else: what is checked of them, and how a series becomes a result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_io.kinds import RESULT_KINDS
from dicom_io.net.destination import Profile
from monai_unet_app.dicom_results import check_coded
from monai_unet_app.errors import AppError
from monai_unet_app.external import ExternalBundle, Surroundings, check_version, labels_of
from monai_unet_app.label_results import write_label_results
from monai_unet_app.service.site_file import Rule, Site
from monai_unet_app.service.work import check_digest

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
        external = self.site.external
        return Surroundings(
            external.path,
            external.home,
            external.threads,
            external.environment,
            self.memory_bytes,
            isolated=self.rule.network == "none",
        )

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


def check_program_rule(rule: Rule, site: Site, bundle: ExternalBundle) -> None:
    """Checks all that can be known before the program is started.

    Raises:
        AppError: The bundle is another one than the rule names, has no gate or a structure without a code, or the rule asks
            for what only a network has.
    """
    check_digest(rule, bundle)
    possible = {kind.format for kind in RESULT_KINDS if kind.from_labels}
    asked = [
        *(f"format {name}" for name in rule.formats if name not in possible),
        *(name for name in ("tta", "elsewhere", "probabilities") if getattr(rule, name)),
        *(["engine"] if rule.engine != "torch" else []),
        *(["channels"] if rule.channels else []),
    ]
    fractional = [name for name in rule.destinations if site.destinations[name].profile.seg_encoding == "fractional"]
    asked += [f"the SEG of {name}" for name in fractional]
    if asked:
        raise AppError(
            f"rule {rule.name} asks for {', '.join(asked)}, and {bundle.name} starts a program that gives labels alone; leave "
            "that out"
        )
    if bundle.command.seconds >= site.node.job_s:
        raise AppError(
            f"rule {rule.name}: {bundle.name} gives its program {bundle.command.seconds:g} s, and job_s is "
            f"{site.node.job_s:g}; the program must end before its job does; raise job_s"
        )
    check_coded(bundle.name, bundle.segments)
    stated = bundle.confidence_about(bundle.program)
    if stated.gate is None and not rule.deliver_ungated:
        raise AppError(
            f"rule {rule.name}: {bundle.name} has no quality gate ({stated.why_not.get('gate', 'none')}); without a gate, "
            "failures would be delivered like good results; fit it to more subjects, or write deliver_ungated = true into the "
            "rule"
        )
