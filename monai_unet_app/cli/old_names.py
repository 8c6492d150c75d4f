"""Old names of verbs: they run for one more version with the flags that they had, and name the new form on stderr."""

from dataclasses import fields
from typing import Annotated, Literal

from monai_unet_app.cli import bundle_flags, bundle_verbs, comparison_verbs, flags, service_flags, service_verbs, verbs
from monai_unet_app.cli.common import Answer
from monai_unet_app.cli.dataclass_parser import Flag, Options
from monai_unet_app.cli.dicom_verbs import echo, fetch, find, send
from monai_unet_app.cli.flag_types import Place, Text
from monai_unet_app.cli.service_verbs import commission, package, token
from monai_unet_app.errors import UsageError

__all__ = ["audit", "bundles", "commission", "echo", "fetch", "find", "gate", "package", "report", "send", "token"]


class Audit(Options):
    """Flags of `audit`.

    Attributes:
        action: follow the chain of digests from the first line to the last
        trail: audit.jsonl in the node's folder
        key: the key that signs the trail (default: audit.key beside the trail, if it exists)
        database: the node's database, which records the end of the trail (default: node.sqlite beside the trail)
    """

    action: Annotated[Literal["verify"], Flag(names=("action",))]
    trail: Annotated[Place, Flag(names=("trail",))]
    key: Place | None = None
    database: Place | None = None


def audit(options: Audit) -> Answer:
    """Check that the audit trail of a node is unchanged.

    Example: monai-unet trace --audit NODE/audit.jsonl
    """
    return service_verbs.trace(
        service_flags.Trace(json=options.json, audit=options.trail, key=options.key, database=options.database)
    )


def bundles(options: Options) -> Answer:
    """List the bundles that a name can stand for.

    Example: monai-unet doctor --bundles
    """
    return bundle_verbs.doctor(bundle_flags.Doctor(json=options.json, bundles=True))


class Report(Options):
    """Flags of `report`.

    Attributes:
        evaluation: folder that evaluate wrote
        bundle: folder of the bundle; configs/metadata.json, docs/README.md change
    """

    evaluation: Place
    bundle: Text


def report(options: Report) -> Answer:
    """Write the figures of an evaluation into the bundle that was measured: its metadata and its model card.

    Example: monai-unet evaluate --evaluation OUT --bundle my_bundle --into-bundle
    """
    return verbs.evaluate(
        flags.Evaluate(json=options.json, bundle=options.bundle, evaluation=options.evaluation, into_bundle=True)
    )


class Gate(flags.Comparison):
    """Flags of `gate`.

    Attributes:
        bundle: a name, a folder or a zip; needs --data
        evaluation: its evaluation, instead of --bundle
        against: the bundle that is in use; needs --data
        against_evaluation: its evaluation, instead of --against
        margin: non-inferiority: the data must show that the loss is below this; a number, or dice=0.01,ece_band=0.002
            (default: none; the data must not show that it is worse)
        partition: which cases of the plan (default: those that neither bundle has seen)
    """

    bundle: Annotated[Text | None, Flag(metavar="NEW")] = None
    evaluation: Annotated[Place | None, Flag(metavar="NEW")] = None
    against: Annotated[Text | None, Flag(metavar="OLD")] = None
    against_evaluation: Annotated[Place | None, Flag(metavar="OLD")] = None
    margin: str | None = None
    partition: Literal["test"] | None = None


def gate(options: Gate) -> Answer:
    """Fail (exit 1) if a bundle is worse than another in Dice, boundary IoU or calibration.

    Example: monai-unet compare --first OLD --second NEW --data DATA --fail-if-worse
    """
    from monai_unet_app.report.stored_evaluation import read_evaluation

    sides = ((options.against, options.against_evaluation), (options.bundle, options.evaluation))
    if any((bundle is None) == (evaluation is None) for bundle, evaluation in sides):
        raise UsageError(
            "two sides are needed, each a bundle or an evaluation; give --bundle NEW --against OLD --data DIR, "
            "or --evaluation NEW --against-evaluation OLD"
        )
    for _, evaluation in sides:
        if evaluation:
            read_evaluation(evaluation)  # `compare` would take a folder without an evaluation for a bundle
    first, second = (str(bundle or evaluation) for bundle, evaluation in sides)
    shared = {entry.name: getattr(options, entry.name) for entry in fields(flags.Comparison)}
    return comparison_verbs.compare(
        flags.Compare(**shared | {"first": first, "second": second, "fail_if_worse": True, "margin": options.margin})
    )
