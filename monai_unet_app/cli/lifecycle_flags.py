"""The flags of the verbs of a model's life, one class for each verb; see `flags`."""

from pathlib import Path
from typing import Annotated, Literal

from monai_unet_app.cli.dataclass_parser import Flag, Options
from monai_unet_app.cli.flag_types import Place, Text


class WatchDrift(Options):
    """Flags of `node drift`.

    Attributes:
        config: the site's file; its node may be running
        rule: only this rule (default: all)
        output: HTML file for a page with plots
        propose: also show which results a reference of so many would have; POST /rules/RULE/reference freezes it
    """

    config: Place
    rule: Text | None = None
    output: Annotated[Place | None, Flag(metavar="HTML")] = None
    propose: int | None = None


class MakePostmortem(Options):
    """Flags of `node postmortem`.

    Attributes:
        config: the site's file; its node may be running
        case: StudyInstanceUID of a study that the node has got
        between: two versions of the rule's model, by number or alias; or two bundles
        rule: whose model it is (default: the only rule)
        output: HTML file for the page (default: postmortem.html)
    """

    config: Place
    case: Text
    between: list[Text]
    rule: Text | None = None
    output: Annotated[Place, Flag(metavar="HTML")] = Path("postmortem.html")


class FillChecklist(Options):
    """Flags of `node checklist`.

    Attributes:
        config: the site's file; its node may be running
        kind: before the first study, in daily use, or when something went wrong (default: pre-production)
    """

    config: Place
    kind: Literal["pre-production", "production", "incident"] = "pre-production"


class InRegistry(Options):
    """Flags of every verb of `registry`.

    Attributes:
        registry: folder of the registry, made if it is new (default: registry)
        uri: address of an MLflow server, or of its database (default: a database in the folder)
    """

    registry: Place = Path("registry")
    uri: Text | None = None


class RegistryAdd(InRegistry):
    """Flags of `registry add`.

    Attributes:
        bundle: a name, a folder or a zip
        name: the model that it is a version of (default: the bundle's name)
        evaluation: folder that evaluate wrote for it; promote compares evaluations
        key: private key that signs its files, an elliptic curve in PEM
    """

    bundle: Text
    name: Text | None = None
    evaluation: Place | None = None
    key: Place | None = None


class RegistryList(InRegistry):
    """Flags of `registry list`.

    Attributes:
        name: only this model (default: all)
    """

    name: Text | None = None


class RegistryShow(InRegistry):
    """Flags of `registry show`.

    Attributes:
        name: the model
        version: a number, champion, challenger or archived (default: champion)
    """

    name: Text
    version: Text = "champion"


class Approved(InRegistry):
    """Flags of what an approver decides.

    Attributes:
        name: the model
        tokens: file of tokens, as a node has; it names who may approve
        token_file: file with the approver's token (default: it is asked for)
        reason: why, in words; for promote: in place of the release gate
    """

    name: Text
    tokens: Place
    token_file: Place | None = None
    reason: Text | None = None


class RegistryPromote(Approved):
    """Flags of `registry promote`.

    Attributes:
        version: a number, challenger or archived
        to: what it becomes (default: champion)
        margin: tolerated loss of each score against the champion: a number, or dice=0.01,boundary_iou=0.01,ece_whole=0.001,
            ece_band=0.005
    """

    version: Text
    to: Literal["champion", "challenger"] = "champion"
    margin: str | None = None


class RegistryExport(RegistryShow):
    """Flags of `registry export`.

    Attributes:
        output: folder that gets the bundle, in a folder of its own name
        public_key: also check its signature by this key
    """

    output: Place
    public_key: Place | None = None
