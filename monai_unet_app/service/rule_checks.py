"""What is checked of the rules of a site and their bundles before any study comes; no network is loaded."""

from dataclasses import replace
from typing import TYPE_CHECKING

from dicom_io.kinds import RESULT_KINDS
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service.site import Rule, Site

if TYPE_CHECKING:
    from monai_unet_app.bundle_folder import BundleFiles
    from monai_unet_app.confidence.statements import Confidence
    from monai_unet_app.external import ExternalBundle


def check_bundles(site: Site) -> None:
    """Checks that each rule's bundle is there, is the one that the rule names, states enough and has codes; loads no network.

    Raises:
        UntrainedError: A bundle has no weights.
        ConsentError: A bundle holds code, and its rule does not name the code digest.
        AppError: A bundle is missing, has another sha256, or lacks a statement (see `check_stated`) or the code of a structure.
    """
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.external import external_bundle

    for rule in site.rules:
        if program := external_bundle(rule.bundle):
            check_program_rule(rule, site, program)
        else:
            check_rule(rule, bundle_files(rule.bundle))


def check_rule(rule: Rule, bundle: "BundleFiles") -> None:
    """Checks a rule whose bundle has a network. Raises as `check_bundles`."""
    from monai_unet_app.dicom_results import check_coded

    bundle.check_trained()
    bundle.check_fitted()
    _check_digest(rule, bundle)
    bundle.config_with(agreed=frozenset([rule.trusted]))
    if rule.export_sha256:
        _check_export(rule, bundle)
    _check_channels(rule, bundle)
    check_stated(rule, bundle)
    check_coded(bundle.name, bundle.segments)


def _check_digest(rule: Rule, bundle: "BundleFiles") -> None:
    """Raises AppError if the rule names another bundle."""
    if rule.sha256 and rule.sha256 != bundle.sha256:
        raise AppError(
            f"rule {rule.name} names a bundle of sha256 {rule.sha256[:12]}..., {bundle.name} has {bundle.sha256[:12]}...; "
            "the bundle that the site has approved is needed; put it back, or approve this bundle in the site file"
        )


def _check_channels(rule: Rule, bundle: "BundleFiles") -> None:
    """A rule names the channels of its bundle after the first, in their order: that is the order in which they are read."""
    needed = bundle.channel_names[1:]
    if tuple(rule.channels) != needed:
        raise AppError(
            f"rule {rule.name} has patterns for the channels {', '.join(rule.channels) or 'none'} beside match; "
            f"{', '.join(needed) or 'none'}, in this order, are what {bundle.name} takes after its first; write channels so"
        )


def _check_export(rule: Rule, bundle: "BundleFiles") -> None:
    from monai_unet_app.inference.engines.certificate import export_named

    found = export_named(bundle, rule.engine, rule.precision) or "none"
    if found != rule.export_sha256:
        raise AppError(
            f"rule {rule.name} names an export of sha256 {rule.export_sha256[:12]}..., {bundle.name} has {found[:12]} for "
            f"{rule.engine} in {rule.precision}; the export that the site has approved is needed; put it back, or approve "
            "this one in the site file"
        )


def check_stated(rule: Rule, bundle: "BundleFiles") -> None:
    """Checks that the bundle states what the rule needs.

    That is a quality gate, unless the rule says `deliver_ungated = true`, and wider intervals, if it says `elsewhere = true`.

    Raises:
        AppError: There is no gate or no such interval, or the bundle's statements cannot be used.
    """
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.confidence.statements import read_confidence

    if rule.deliver_ungated and not rule.elsewhere:
        return
    settings = rule.settings
    if rule.tta and not load_bundle(bundle.root, agreed=frozenset([rule.trusted])).mirror_axes:
        settings = replace(settings, tta=False)
    try:
        stated = read_confidence(bundle, settings)
    except InputRefusedError as error:
        raise AppError(f"rule {rule.name}: {error}") from error
    how, flag = (" run with tta = true", " with --tta") if rule.tta else ("", "")
    _check_gate(rule, f"{bundle.name}{how}", stated, f"calibrate the bundle{flag} on enough subjects")


def _check_gate(rule: Rule, name: str, stated: "Confidence", remedy: str) -> None:
    if stated.gate is None and not rule.deliver_ungated:
        raise AppError(
            f"rule {rule.name}: {name} has no quality gate ({stated.why_not.get('gate', 'none')}); without a gate, failures "
            f"would be delivered like good results; {remedy}, or write deliver_ungated = true into the rule to deliver results "
            "that no quality gate has judged"
        )


def check_program_rule(rule: Rule, site: Site, bundle: "ExternalBundle") -> None:
    """Checks all that can be known before the program is started.

    Raises:
        AppError: The bundle is another one than the rule names, has no gate or a structure without a code, or the rule asks
            for what only a network has.
    """
    from monai_unet_app.dicom_results import check_coded

    _check_digest(rule, bundle)
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
    _check_gate(rule, bundle.name, bundle.confidence_about(bundle.program), "fit it to more subjects")
