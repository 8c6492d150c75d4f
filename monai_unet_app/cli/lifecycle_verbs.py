"""The verbs of a model's life: node drift."""

from monai_unet_app.cli import service_flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, Answer
from monai_unet_app.errors import UsageError


def drift(options: service_flags.WatchDrift) -> Answer:
    """Say what has changed in what a node sees, since when and with which scanner. Exit code 1 after an alarm.

    Example: monai-unet node drift --config site.toml --output drift.html
    """
    from monai_unet_app.lifecycle.watch import reference_of, watch
    from monai_unet_app.service.site_file import read_site

    site = read_site(options.config)
    names = [rule.name for rule in site.rules]
    if options.rule is not None and options.rule not in names:
        raise UsageError(f"--rule is {options.rule}; one of {', '.join(names)} is needed; correct it")
    if options.propose is not None and options.rule is None:
        raise UsageError("--propose needs --rule, whose results the reference has; give both")
    rules = watch(site.node.folder / "audit.jsonl", [options.rule] if options.rule else names)
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
