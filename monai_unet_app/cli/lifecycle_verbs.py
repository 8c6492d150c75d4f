"""The verbs of a model's life: registry and its second words, node drift, node postmortem, node checklist."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from getpass import getpass
from typing import TYPE_CHECKING

from monai_unet_app.cli import lifecycle_flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, Answer
from monai_unet_app.cli.comparison_verbs import margins_of
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    from monai_unet_app.lifecycle.registry import Registry


def registry(options: Options) -> Answer:
    """Keep versions of models, and say which is in use; add, list, show, promote, rollback, export.

    Example: monai-unet registry list
    """
    raise UsageError(
        "registry alone does nothing; add, list, show, promote, rollback or export is needed; monai-unet registry --help"
    )


def _opened(options: lifecycle_flags.InRegistry, *, new: bool = False) -> "AbstractContextManager[Registry]":
    from monai_unet_app.lifecycle.registry import open_registry

    return open_registry(options.registry, options.uri or "", new=new)


def add(options: lifecycle_flags.RegistryAdd) -> Answer:
    """Register a bundle as the next version of a model.

    Example: monai-unet registry add --bundle my_bundle --evaluation OUT
    """
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.confidence.results_bundle import results_bundle

    files = results_bundle(options.bundle) or bundle_files(options.bundle)
    _ = files.sha256  # a bundle without weights is refused before a registry is made
    name = options.name or files.name
    with _opened(options, new=True) as opened:
        version = opened.add(options.bundle, name, options.evaluation, options.key)
        looks = max(opened.looks(name).values(), default=0)
    show.line(f"{name} version {version.number}: sha256 {version.sha256}")
    if looks > 1:
        show.line(
            f"{looks} versions were measured on the same test cases: each look makes the best of them look better"
        )
    return {**version.document(), "looks": looks}, EXIT_DONE


def list_versions(options: lifecycle_flags.RegistryList) -> Answer:
    """List the versions of models; which is champion, challenger, archived.

    Example: monai-unet registry list --name hippocampus
    """
    from monai_unet_app.bundle_folder import figure_of

    with _opened(options) as opened:
        versions = opened.versions(options.name or "")
        looks = {name: opened.looks(name) for name in {one.model for one in versions}}
    rows = []
    if not versions:
        show.line(f"no model is registered in {options.registry}; monai-unet registry add registers one")
        return {"versions": [], "looks": {}}, EXIT_DONE
    for one in versions:
        evaluated = one.facts["evaluation"] or {}
        dice = evaluated.get("dice") or figure_of(one.facts["measured"].get("dice"))
        named = (one.model, str(one.number), ", ".join(one.aliases), str(one.facts["version"]), one.sha256[:12])
        rows.append((*named, "–" if dice is None else f"{dice:.3f}"))
    show.print_table(("model", "version", "alias", "bundle", "sha256", "Dice"), rows)
    return {"versions": [one.document() for one in versions], "looks": looks}, EXIT_DONE


def show_version(options: lifecycle_flags.RegistryShow) -> Answer:
    """Show what is known of a version, and what was done with the model.

    Example: monai-unet registry show --name hippocampus --version champion
    """
    with _opened(options) as opened:
        version, history = opened.version(options.name, options.version), opened.history(options.name)
        is_signed = opened.is_signed(version)
    show.line(f"{version.model} version {version.number} ({', '.join(version.aliases) or 'no alias'})")
    _show({"sha256": version.sha256, "signed": is_signed, **version.facts})
    for line in history:
        show.line("  " + ", ".join(f"{key} {value}" for key, value in line.items()))
    return {**version.document(), "history": history}, EXIT_DONE


def _show(facts: Mapping[str, object], indent: str = "  ") -> None:
    """Facts, one a line, those within facts further to the right."""
    for key, value in facts.items():
        inner = value if isinstance(value, list | tuple) else [value]
        parts = [one for one in inner if isinstance(one, dict)]
        show.line(f"{indent}{key}:" + ("" if parts else f" {value}"))
        for one in parts:
            _show(one, indent + "  ")


def promote(options: lifecycle_flags.RegistryPromote) -> Answer:
    """Make a version champion or challenger, if it passes the release gate or for a written reason.

    Example: monai-unet registry promote --name hippocampus --version 2 --tokens tokens --margin 0.01
    """
    who = _approver(options)
    with _opened(options) as opened:
        how = (options.to, who, margins_of(options.margin), options.reason or "")
        outcome = opened.promote(options.name, options.version, *how)
        version = opened.version(options.name, options.to)
    show.line(f"{options.name} version {version.number} is {options.to}{f': {outcome.reason}' if outcome else ''}")
    return {**version.document(), "gate": outcome.as_dict() if outcome else None}, EXIT_DONE


def rollback(options: lifecycle_flags.Approved) -> Answer:
    """Make the champion before the champion again.

    Example: monai-unet registry rollback --name hippocampus --tokens tokens --reason 'misses small structures'
    """
    who = _approver(options)
    if not options.reason:
        raise UsageError("--reason is missing; why the champion is replaced is needed, for the audit trail")
    with _opened(options) as opened:
        version = opened.roll_back(options.name, who, options.reason)
    show.line(f"{options.name} version {version.number} is champion again")
    return version.document(), EXIT_DONE


def export_version(options: lifecycle_flags.RegistryExport) -> Answer:
    """Write the bundle of a version into a folder; its sha256 is checked.

    Example: monai-unet registry export --name hippocampus --output MODELS
    """
    with _opened(options) as opened:
        folder = opened.export(options.name, options.version, options.output, options.public_key)
        version = opened.version(options.name, options.version)
    show.line(f"wrote {folder}: version {version.number} of {options.name}")
    return {**version.document(), "folder": str(folder)}, EXIT_DONE


def _approver(options: lifecycle_flags.Approved) -> str:
    """Name of the person whose token was given. Raises UsageError if it is not an approver's."""
    from monai_unet_app.service.tokens import Tokens

    tokens = Tokens(options.tokens)
    try:
        token = options.token_file.read_text(encoding="utf-8") if options.token_file else getpass("approver's token: ")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"no token could be read ({error}); the approver's is needed; give --token-file") from error
    holder = tokens.holder_of(token.strip())
    if holder is None or holder.is_expired or not holder.decides_as("approver"):
        who = "the token is unknown" if holder is None else f"the token of {holder.name} is not valid for that"
        raise UsageError(
            f"{who}; a token with the role approver and a person's name is needed; monai-unet node token makes it"
        )
    return holder.name


def drift(options: lifecycle_flags.WatchDrift) -> Answer:
    """Say what has changed in what a node sees, since when and with which scanner. Exit code 1 after an alarm.

    Example: monai-unet node drift --config site.toml --output drift.html
    """
    from monai_unet_app.lifecycle.watch import reference_of, watch
    from monai_unet_app.service.site_file import read_site

    site = read_site(options.config)
    chosen = [site.named_rule(options.rule)] if options.rule else site.rules
    if options.propose is not None and options.rule is None:
        raise UsageError("--propose needs --rule, whose results the reference has; give both")
    rules = watch(site.node.folder / "audit.jsonl", [rule.name for rule in chosen])
    documents = [rule.document() for rule in rules]
    if options.propose is not None:
        documents[0]["proposed"] = reference_of(rules[0], options.propose)
    for rule in rules:
        show.paragraph(f"{rule.rule}: {rule.sentence}")
        if dice := rule.expected:
            show.paragraph(
                f"  expected Dice of the last {dice.results} result(s): {dice.mean:.2f} "
                f"({dice.low:.2f} to {dice.high:.2f}), {dice.reviewed} reviewed"
            )
    if options.output:
        from monai_unet_app.lifecycle.drift_page import write_drift_page

        write_drift_page(rules, options.output)
        show.wrote([options.output])
    return {"rules": documents}, EXIT_FAILED if any(rule.state == "drift" for rule in rules) else EXIT_DONE


def postmortem(options: lifecycle_flags.MakePostmortem) -> Answer:
    """Say what differs between two versions, what both make of a study, and where the second is worse.

    Example: monai-unet node postmortem --config site.toml --case UID --between 1 2
    """
    if len(options.between) != 2:
        raise UsageError(f"--between has {len(options.between)} words; two versions are needed, such as --between 1 2")
    from monai_unet_app.lifecycle import postmortem as found_by
    from monai_unet_app.lifecycle.postmortem_page import write_postmortem
    from monai_unet_app.service.site_file import read_site

    first, second = options.between
    site = read_site(options.config)
    with found_by.postmortem(site, options.case, (first, second), options.rule or "", show.say) as found:
        write_postmortem(found, options.output)
        document = found.document()
    rows = [(name, *pair) for name, pair in document["differences"].items()]
    show.print_table(("what differs", "first", "second"), rows)
    show.paragraph(found.sentence)
    show.wrote([options.output])
    return document, EXIT_DONE


def checklist(options: lifecycle_flags.FillChecklist) -> Answer:
    """Fill in a check-list: what can be measured is, the rest is asked. Exit code 1 if something is missing.

    Example: monai-unet node checklist --config site.toml --kind production
    """
    from monai_unet_app.lifecycle.checklist import checklist as items_of
    from monai_unet_app.service.site_file import read_site

    items = items_of(read_site(options.config), options.kind)
    marks = {"done": "yes", "missing": "NO", "ask": "[ ]"}
    show.print_table(("", options.kind, "found"), [(marks[one.state], one.text, one.found) for one in items])
    missing = sum(one.state == "missing" for one in items)
    show.line(f"{missing} missing, {sum(one.state == 'ask' for one in items)} for a person to say")
    return {"items": [vars(one) for one in items]}, EXIT_FAILED if missing else EXIT_DONE
