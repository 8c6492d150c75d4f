"""What a site says of its node: where it listens, which series it segments, and where results go.

`service.site_file` reads it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dicom_io.net.destination import OUR_AE_TITLE, Destination, Tls
from monai_unet_app.config import EngineName, Precision, ResultSettings
from monai_unet_app.data.selection import Patterns
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.rows import NewResult, Result

SCORES = ("dice", "boundary_iou", "ece_whole", "ece_band")
"""The scores of the release gate, each of which has a margin."""

PREFIX = "registry:"
"""Begins the bundle of a rule that names a model of the registry: registry:MODEL@ALIAS or registry:MODEL@NUMBER."""


@dataclass(frozen=True)
class Rule:
    """The series that a bundle segments, and what happens to the results.

    Attributes:
        name: Name of the rule; letters, digits, _ and -.
        bundle: Name or folder of the bundle; or registry:MODEL@ALIAS, a model of the site's registry.
        match: DICOM keyword -> pattern that the value must contain, regardless of case; all patterns must match.
        channels: Name of each further channel of the bundle -> patterns as of `match` for its series, which lies in the study
            and the frame of reference of the first.
        least_instances: Series with fewer instances are ignored.
        formats: Kinds of DICOM objects, some of `dicom_io.kinds.FORMATS`.
        destinations: Names of destinations of the site.
        sha256: Digest of the bundle; a bundle with another digest is not loaded. Empty: any bundle.
        trusted: Code digest of a bundle that is a program, and may run; the refusal of such a bundle names it.
        engine, precision: As in `ResultSettings`; a node never chooses them.
        export_sha256: Of the export that another engine than torch runs, as `bundle export` prints it.
        tta: Average over mirror images.
        elsewhere: The images are not from where the bundle was calibrated: intervals are wider.
        hold_review: Hold results with the verdict "review" until a reviewer accepts or releases them; otherwise they are
            delivered, and say so themselves. Results with the verdict "reject" are always held back.
        review_share: Part of the accepted results that are drawn at random and held for a reviewer, from 0 to 1, so that the
            Dice of those that nobody sees can be told.
        probabilities: Keep the probabilities of all classes beside the result; they are large.
        deliver_ungated: Deliver results without a verdict if the bundle has no quality gate for this rule; without this setting
            such a rule does not start.
        notice: Destinations that take captures get a notice of a series that was picked and not processed.
        reject_replaced: Reject the earlier version of a result at each destination that has got the later one and takes KO.
        allow_incomplete: Segment the present images of a series that lacks images by its own headers after `incomplete_s`.
        challenger: registry:MODEL@challenger, a model that is tried beside `bundle`; empty: none.
        canary: The most of the patients, from 0 to 1, whose results an approver may let the challenger make.
        least_agreement: Dice of the structure that agrees least, below which results of champion and challenger disagree.
        most_slower: How many times as much processor time as the champion the challenger may take.
        network: none: a program that the bundle starts does not start where it could reach a network; any: it may.
    """

    name: str
    bundle: str
    match: Mapping[str, re.Pattern[str]]
    channels: Mapping[str, Patterns] = field(default_factory=dict)
    least_instances: int = 1
    formats: tuple[str, ...] = ("seg", "sr")
    destinations: tuple[str, ...] = ()
    sha256: str = ""
    trusted: str = ""
    engine: EngineName = "torch"
    precision: Precision = "float32"
    export_sha256: str = ""
    tta: bool = False
    elsewhere: bool = False
    hold_review: bool = True
    review_share: float = 0.0
    probabilities: bool = False
    notice: bool = False
    reject_replaced: bool = True
    allow_incomplete: bool = False
    deliver_ungated: bool = False
    challenger: str = ""
    canary: float = 0.0
    least_agreement: float = 0.7
    most_slower: float = 2.0
    network: Literal["none", "any"] = "none"

    @property
    def is_registered(self) -> bool:
        """Whether its bundle is a model of the registry."""
        return self.bundle.startswith(PREFIX)

    @property
    def settings(self) -> ResultSettings:
        """What the rule asks for of its results."""
        return ResultSettings(tta=self.tta, elsewhere=self.elsewhere, engine=self.engine, precision=self.precision)


@dataclass(frozen=True)
class NodeConfig:
    """Where a node listens, its limits, and its waiting times.

    Attributes:
        folder: Holds received studies, results, the database and the audit trail.
        audit_key: File of the key that signs the audit trail; None: audit.key in `folder`.
        ae_title, host, port: Where the node listens for DICOM.
        senders: Calling AE titles that may connect; empty: all.
        networks: IP networks that may connect; empty: all.
        tls: Certificates; None: not encrypted.
        idle_s: An association without traffic for so many seconds is aborted.
        most_senders: Associations at one time; one in five is reserved for callers from other addresses.
        stable_s: A study is complete when no instance has come for so many seconds.
        incomplete_s: As `stable_s`, for a study in which a rule picks a series that lacks images by its own headers.
        workers: Processes that segment at one time.
        worker_gb: Memory limit of a worker; a worker that exceeds it is ended.
        device: Of the networks, as in `resolve_device`. With "auto" a window for which an accelerator has no memory runs on the
            CPU; with a name such as "cuda" the study is refused. What the first worker finds holds until the node ends.
        job_s: Seconds that a study may take.
        silent_s: A worker or sender without a heartbeat for so many seconds counts as frozen and is replaced.
        tries: Attempts at a study whose worker dies, hangs or exceeds its memory.
        first_pause_s, longest_pause_s: Pauses between attempts to reach a destination; each is twice as long as the last.
        give_up_h: Hours after which the result for an unreachable destination goes to the dead letters.
        retention_days: How long studies and results are kept after everything about them is done.
        decision_days: How long records of decisions are kept; 0: for ever.
        least_free_gb: With less free disk than this, no instance is received.
        instance_gb: The largest instance; it is held in memory while it is received.
        organization: The organization of the reviewers, named in verified reports.
        show_identity: Whether review pages may name the patient, and reviewers may see the values of `find_by`.
        find_by: DICOM keywords of the header values by which reviewers find a study.
    """

    folder: Path
    audit_key: Path | None = None
    ae_title: str = OUR_AE_TITLE
    host: str = "127.0.0.1"
    port: int = 11112
    senders: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    tls: Tls | None = None
    idle_s: float = 60.0
    most_senders: int = 50
    stable_s: float = 10.0
    incomplete_s: float = 300.0
    workers: int = 1
    worker_gb: float = 8.0
    device: str = "auto"
    job_s: float = 900.0
    silent_s: float = 10.0
    tries: int = 3
    first_pause_s: float = 2.0
    longest_pause_s: float = 300.0
    give_up_h: float = 72.0
    retention_days: float = 14.0
    decision_days: float = 0.0
    least_free_gb: float = 1.0
    instance_gb: float = 1.0
    organization: str = ""
    show_identity: bool = True
    find_by: tuple[str, ...] = ("AccessionNumber",)


@dataclass(frozen=True)
class HttpConfig:
    """Where the HTTP API listens, and its limits.

    Attributes:
        tokens: File of tokens, see `service.tokens`.
        host, port: Where the server listens; on an address of the network only with `tls`.
        tls: Certificate and key; None: not encrypted.
        most_upload_gb: The largest upload.
        most_upload_s: Seconds that an upload may take.
        least_upload_kb_per_second: The lowest rate at which a body may come, in 1,000 bytes for each second.
        slow_upload_s: Seconds for which a body may come more slowly than that, or not at all.
        most_connections: Connections at one time.
        most_per_address: Connections at one time from one address.
        head_s: Seconds within which the TLS handshake and the head of a request must come.
    """

    tokens: Path
    host: str = "127.0.0.1"
    port: int = 8042
    tls: Tls | None = None
    most_upload_gb: float = 4.0
    most_upload_s: float = 600.0
    least_upload_kb_per_second: float = 10.0
    slow_upload_s: float = 20.0
    most_connections: int = 64
    most_per_address: int = 32
    head_s: float = 10.0


@dataclass(frozen=True)
class ExternalConfig:
    """What programs find that the bundles of rules start.

    Attributes:
        path: Folders in which they are looked for, separated by colons.
        home: Their home folder.
        threads: They are told to use.
        environment: Further environment variables.
    """

    path: str = "/usr/local/bin:/usr/bin:/bin"
    home: str = "/nonexistent"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RegistryConfig:
    """The registry of models that rules name.

    Attributes:
        folder: Holds its audit trail, and without `uri` its models.
        uri: Address of an MLflow server; empty for a database in the folder.
        public_key: Only bundles that this key has signed are taken; None: signatures are not asked for.
        margins: Tolerated loss of each score of the release gate, which a challenger passes before its results go out.
    """

    folder: Path
    uri: str = ""
    public_key: Path | None = None
    margins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A whole site file; `http` is None for a site without an HTTP API, `registry` for one without a registry."""

    path: Path
    node: NodeConfig
    rules: tuple[Rule, ...]
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    http: HttpConfig | None = None
    external: ExternalConfig = field(default_factory=ExternalConfig)
    registry: RegistryConfig | None = None

    def rule(self, name: str) -> Rule | None:
        """The rule of that name; None if the site has no such rule, or no longer has it."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def named_rule(self, name: str) -> Rule:
        """The rule of that name; the only rule for an empty name. Raises InputRefusedError if there is no such rule."""
        found = self.rule(name) if name or len(self.rules) != 1 else self.rules[0]
        if found is None:
            said = f"the site has no rule {name!r}" if name else "no rule is named"
            raise InputRefusedError(
                f"{said}; one of {', '.join(rule.name for rule in self.rules)} is needed; correct it"
            )
        return found

    def destinations_for(self, result: NewResult | Result) -> tuple[str, ...]:
        """Names of the destinations of a result.

        Empty for a rule that no longer exists, and for an empty series: the result of a NIfTI image is fetched, not sent.
        """
        rule = self.rule(result.rule)
        return rule.destinations if rule and result.series else ()

    def noticed(self, rule: Rule) -> tuple[str, ...]:
        """Names of the destinations that get notices of series that a rule picked and were not processed."""
        captures = (name for name in rule.destinations if "SC" in self.destinations[name].profile.objects)
        return tuple(captures) if rule.notice else ()
