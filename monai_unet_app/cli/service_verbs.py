"""The verbs of the service and of its results: node, node token, node commission, trace, review, package."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.datadict import tag_for_keyword

from dicom_io.errors import DicomIoError
from monai_unet_app.cli import common, service_flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, Answer
from monai_unet_app.errors import InputRefusedError, UntrainedError, UsageError, needing

if TYPE_CHECKING:
    from monai_unet_app.service.acceptance_checks import Check
    from monai_unet_app.service.commission import Commissioning
    from monai_unet_app.service.database import Head
    from monai_unet_app.service.node import Node
    from monai_unet_app.service.stop_signal import StopSignal


def node(options: service_flags.RunNode) -> Answer:
    """Take studies from a PACS, segment them and deliver the results; day and night. node token makes tokens for its HTTP API.

    Example: monai-unet node --config site.toml
    """
    if options.config is None:
        raise UsageError("--config is missing; the site's file is needed; give --config site.toml")
    from monai_unet_app.machine_memory import keep_small
    from monai_unet_app.service.models import ask_registry, with_models
    from monai_unet_app.service.node import Node
    from monai_unet_app.service.site_file import read_site
    from monai_unet_app.service.spans import Spans
    from monai_unet_app.service.stop_signal import StopSignal

    # malloc must be set before the first thread starts.
    keep_small()
    site = read_site(options.config)
    os.umask(0o077)  # its files are patient data
    _log()
    ask_registry(site)
    _check_bundles(site.path)
    spans = Spans(options.otlp) if options.otlp else None
    with_models(site)  # its copies are what was registered; the node goes on with the names, whose meaning may change
    stop = StopSignal(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: its terminal was closed
    with Node(site, new_key=options.new_audit_key) as running, _http_server(running):
        running.durations.spans = spans
        show.line(f"{site.node.ae_title} listens on {site.node.host}:{running.provider.port}; Ctrl-C ends it")
        for rule in site.rules:
            conditions = ", ".join(f"{keyword} ~ {pattern.pattern}" for keyword, pattern in rule.match.items())
            show.line(f"  {rule.name}: {conditions} -> {rule.bundle} -> {', '.join(rule.destinations) or 'nowhere'}")
        if site.http is not None:
            show.line(f"  status page: http{'s' if site.http.tls else ''}://{site.http.host}:{site.http.port}/")
        _wait(running, stop)
        counts = running.queue.counts()
    if spans is not None:
        spans.close()
    return counts, EXIT_DONE


def _log() -> None:
    """Logs to stderr, with the time, what the node does with each study, and the warnings of our own packages.

    Of other packages only errors are logged, because their warnings may quote a header.
    """
    # `main` has switched warnings off for every verb.
    logging.disable(logging.NOTSET)
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    for name in ("dicom_io", "monai_unet_app"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("monai_unet_app.service").setLevel(logging.INFO)


def _check_bundles(site: Path) -> None:
    """Checks the bundles of a site in a process of its own, because torch would stay in the memory of the node."""
    from monai_unet_app.service.work import UNTRAINED

    checked = subprocess.run(
        [sys.executable, "-P", "-m", "monai_unet_app.service.work", str(site), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if checked.returncode:
        # Imported libraries may have written lines before the error.
        kind = UntrainedError if checked.returncode == UNTRAINED else UsageError
        raise kind(checked.stderr.strip().splitlines()[-1])


def _http_server(running: "Node") -> AbstractContextManager[object]:
    """The HTTP server, if the site file has a table [http]."""
    if running.site.http is None:
        return nullcontext()
    with needing("node", "[http] of the site file"):
        from monai_unet_app.service.http_api import serve
    return serve(running, running.site.http)


def _wait(running: "Node", stop: "StopSignal") -> None:
    from monai_unet_app.machine_memory import trim_until

    while not running.is_ready and not stop.wait(0.1):
        pass
    if not stop.wait(0):
        show.line(f"ready: {len(running.workers.children)} worker(s) are warm")
    trim_until(stop.wait)
    show.line("stopping; unfinished studies are segmented again at the next start")


def _check_trail(audit: Path, options: service_flags.Trace) -> Answer:
    """Checks that the audit trail of a node is unchanged: its chain of digests, its signatures, and its end."""
    from monai_unet_app.service.audit import KEY_FILE, read_key, verify

    beside = audit.with_name(KEY_FILE)
    # without a key the chain of digests is checked, and the signatures are not
    key = read_key(options.key or beside) if options.key or os.access(beside, os.R_OK) else None
    if options.key and key is None:
        raise UsageError(f"{options.key} does not exist; the key of the node's audit trail is needed; correct --key")
    of_node, of_registry = map(audit.with_name, ("node.sqlite", "registry.sqlite"))
    database = options.database or (of_registry if of_registry.exists() else of_node)
    head, compared = _recorded_head(database, required=bool(options.database))
    trail = verify(audit, key, head)
    show.line(f"{audit} is complete: {trail.lines} line(s), the last has sha256 {trail.last}")
    show.line(f"  who wrote it: {_signed(trail.lines, trail.signed, has_key=key is not None)}")
    show.line(f"  its end: {compared}")
    facts = {"lines": trail.lines, "last": trail.last, "signed": trail.signed}
    return {**facts, "compared_with_database": head is not None}, EXIT_DONE


def _signed(lines: int, signed: int, *, has_key: bool) -> str:
    if not has_key:
        return "not checked; the key is needed: audit.key beside the trail, or --key"
    unsigned = (
        f"; {lines - signed} earlier line(s) are not signed by it, and have not changed since the first signature"
    )
    return f"{signed} line(s) are signed by the node's key{unsigned if signed < lines else ''}"


def _recorded_head(database: Path, *, required: bool) -> "tuple[Head | None, str]":
    """The head of the trail in a node's database, and a text that says how the end of the trail was checked."""
    import sqlite3

    from monai_unet_app.service.database import read_head

    if not database.exists() and not required:
        return (
            None,
            "not checked; there is no node.sqlite or registry.sqlite beside the trail, and no --database was given",
        )
    try:
        head = read_head(database)
    except sqlite3.Error as error:
        raise InputRefusedError(
            f"{database} cannot be read ({error}); the database of the trail's node is needed; correct --database"
        ) from error
    if head is None:
        return None, f"not checked; {database.name} has no record of a trail"
    return head, f"no line recorded in {database.name} is missing (line {head.n})"


def token(options: service_flags.Token) -> Answer:
    """Make a token for a node's HTTP API.

    Example: monai-unet node token --name Rossi^Anna --roles reviewer
    """
    from monai_unet_app.service.tokens import new_token

    new, text = new_token(options.name, options.roles.split(","), options.days)
    show.line("the token, only for its holder; it is shown once:")
    show.line(f"  {new}")
    show.line("the line for the node's file of tokens:")
    show.line(f"  {text}")
    return {"token": new, "line": text}, EXIT_DONE


def trace(options: service_flags.Trace) -> Answer:
    """Trace a DICOM result back to what made it, or check an audit trail; it shows bundle, training data, calibration, source.

    Example: monai-unet trace RESULTS/case_seg.dcm --audit NODE/audit.jsonl
    """
    if options.file is None:
        if options.audit is None:
            raise UsageError(
                "nothing is named; a result or an audit trail is needed; give a DICOM file, or --audit TRAIL"
            )
        return _check_trail(options.audit, options)
    if options.key or options.database:
        raise UsageError(f"--key and --database check a trail; leave them out, or {options.file}")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from monai_unet_app.service.trace import trace as trace_result

    origin = trace_result(options.file, options.audit)
    loader = PackageLoader(__package__)
    # StrictUndefined: a fact that the template names and the result lacks is an error, not an empty text.
    templates = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    show.line(templates.get_template("trace.txt").render(origin).rstrip("\n"))
    return origin, EXIT_DONE


def commission(options: service_flags.Commission) -> Answer:
    """Try destinations and node of a site with phantoms; sign a report.

    Example: monai-unet node commission --config site.toml --key site.pem --holder 'Radiology IT' --output ACCEPTANCE
    """
    with needing("node", "signing"):
        from monai_unet_app.service.acceptance import site_key, verify_acceptance, write_acceptance
    if options.verify:
        report = verify_acceptance(options.verify)
        show.line(
            f"{options.verify} is unchanged since {report['holder']} signed it with the key {report['public_key']}"
        )
        return report, EXIT_DONE
    if options.config is None:
        raise UsageError("--config is missing; the site's file is needed, or --verify and a report")
    from monai_unet_app.service.commission import commission as run_checks
    from monai_unet_app.service.models import with_models
    from monai_unet_app.service.site_file import read_site

    site, settings = with_models(read_site(options.config)), _commissioning(options)
    # The key is read before the checks, which take minutes, and not only when the report is signed.
    key = site_key(options.key, options.holder)
    show.say(f"this takes {options.limit_min:g} min at most")
    acceptance = run_checks(site, settings, on_check=_print_check, on_wait=show.say)
    written = write_acceptance(acceptance, key, options.output)
    not_tried = acceptance.of("not tried")
    more = f", {len(not_tried)} not tried" if not_tried else ""
    show.line(f"{len(acceptance.of('passed'))} of {len(acceptance.checks)} checks passed{more}")
    show.wrote(written)
    return acceptance.document(), EXIT_DONE if acceptance.passed else EXIT_FAILED


def _commissioning(options: service_flags.Commission) -> "Commissioning":
    from dicom_io.net.destination import checked_ae_title
    from monai_unet_app.service.commission import Commissioning

    if not options.limit_min > 0:
        raise UsageError(f"--limit-min is {options.limit_min:g}; more than 0 is needed; correct it")
    try:
        title = checked_ae_title(options.calling_ae_title, "--calling-ae-title")
    except DicomIoError as error:
        raise UsageError(str(error)) from error
    examples, headers = {}, dict[str, dict[str, str]]()
    for text in options.example:
        rule, equals, path = text.partition("=")
        if not equals or not Path(path).exists():
            raise UsageError(f"--example is {text}; RULE=PATH with a file or folder that exists is needed; correct it")
        examples[rule] = Path(path)
    for text in options.header:
        name, equals, value = text.partition("=")
        rule, _, keyword = name.rpartition(".")
        if not equals or tag_for_keyword(keyword) is None:
            raise UsageError(f"--header is {text}; RULE.KEYWORD=VALUE with a DICOM keyword is needed; correct it")
        headers.setdefault(rule, {})[keyword] = value
    return Commissioning(
        not options.no_node, title, options.node_host or "", examples, headers, limit_s=options.limit_min * 60
    )


def _print_check(check: "Check", number: int, total: int) -> None:
    """Prints a line for a check, and the reason if it failed; checks that were not tried are counted at the end."""
    if check.state == "not tried":
        return
    errors = "" if check.place_mm is None else f", place {check.place_mm:.4f} mm, volume {check.volume_ml:.4f} mL"
    word = "passed" if check.passed else "FAILED"
    show.line(f"[{number:>3} of {total}] {word}  {check.where}: {check.what} ({check.seconds:.1f} s{errors})")
    if not check.passed:
        show.line(f"        {check.said}")


def review(options: service_flags.Review) -> Answer:
    """Write a page to accept, correct or reject a result; for a clinician. Or apply the decision.

    Example: monai-unet review --result OUT/case_result.json --input case.nii.gz --output REVIEW
    """
    return _write_review(options) if options.apply is None else _apply_decision(options.apply, options)


def _write_review(options: service_flags.Review) -> Answer:
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.data.read import read_volume
    from monai_unet_app.review.export import ReviewConfig, write_review
    from monai_unet_app.review.reviewed_case import made_series

    source = options.input or made_series(options.result)
    if source is None:
        raise UsageError(
            "--input is missing; the image that the result was made from is needed, or --apply and a decision"
        )
    if options.same_patient and options.prior is None:
        raise UsageError(
            "--same-patient needs --prior, which is missing; name an earlier result.json, or leave --same-patient out"
        )
    config = ReviewConfig(
        options.post_url, options.most_mb, not options.without_identity, not options.no_pdf, options.same_patient
    )
    common.check_writable(options.output)
    written = write_review(
        options.result,
        options.output,
        image=read_volume(source, common.read_options(options)),
        bundle=bundle_files(options.bundle) if options.bundle else None,
        prior=options.prior,
        how=config,
    )
    show.wrote(written.values())
    if "identity" in written:
        show.line(f"{options.output} names a patient: protect it accordingly")
    show.line(f"next: open {written['page']} in a browser")
    return {kind: str(path) for kind, path in written.items()}, EXIT_DONE


def _apply_decision(decision: Path, options: service_flags.Review) -> Answer:
    from monai_unet_app.data.read import read_volume
    from monai_unet_app.review.decision import DecisionContext, Reviewer, apply_decision, read_decision

    if bool(options.reviewer) != bool(options.organization):
        raise UsageError(
            "--reviewer and --organization go together: both are written into the verified report; give both, or neither"
        )
    common.check_writable(options.output)
    reviewer = Reviewer(options.reviewer, options.organization) if options.reviewer and options.organization else None
    context = DecisionContext(
        reviewer=reviewer,
        image=None if options.input is None else read_volume(options.input, common.read_options(options)),
        correction=options.correction,
        training=options.training,
        subject=options.subject,
        variants=options.variants,
        delivered=options.delivered,
        superseded=tuple(options.superseded),
    )
    record = apply_decision(read_decision(decision), options.result, options.output, context)
    show.line(f"{record['case']}: {record['decision']}")
    if record["not_verified"]:
        show.line(f"no verified report: {record['not_verified']}")
    show.wrote(options.output / row["file"] for row in record["objects"])
    return record, EXIT_DONE


def package(options: service_flags.Package) -> Answer:
    """Render a bundle as a package for MONAI Deploy and mercure; a MONAI application package (MAP).

    Example: monai-unet bundle package --bundle hippocampus_mri_unet3d --output PACKAGE
    """
    from monai_unet_app.deploy.package import Resources, render_package, usual_settings
    from monai_unet_app.deploy.settings import Settings

    changes = common.set_fields(options, Settings)
    if options.format:
        changes["format"] = tuple(word.strip() for word in options.format.split(","))
    resources = Resources(**common.set_fields(options, Resources))
    made = render_package(options.bundle, options.output, replace(usual_settings(options.bundle), **changes), resources)
    show.wrote([made])
    show.line(f"next: docker build --tag NAME {shlex.quote(str(made))}")
    return {"package": str(made)}, EXIT_DONE
