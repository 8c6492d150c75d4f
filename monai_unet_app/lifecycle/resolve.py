"""Asks the registry which versions the rules of a site mean, and keeps verified copies in the node's folder.

    python -m monai_unet_app.lifecycle.resolve SITE.toml

In a process of its own, since MLflow is large. Exit code 0: every name has a copy; stderr says if the registry was away.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dicom_io.files import write_whole
from monai_unet_app.bundle_folder import BundleFiles, bundle_files
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.lifecycle.registry import Registry, open_registry
from monai_unet_app.service.models import (
    challenger_key,
    copy_of,
    model_and_version,
    names_of,
    public_key_of,
    resolved,
    resolved_file,
)
from monai_unet_app.service.rule_checks import check_rule
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.service.site_file import read_site


def resolve(site: Site) -> str:
    """Writes `resolved.json`; gives what went wrong if the copies of before stay, else an empty text.

    Raises:
        AppError: A name has no copy, and the registry does not answer or refuses it.
    """
    known = resolved(site)
    assert site.registry is not None  # or the site file were refused
    try:
        with open_registry(site.registry.folder, site.registry.uri, new=False) as registry:
            new = {name: _copied(site, registry, name) for name in names_of(site)}
            for rule in site.rules:
                if rule.bundle in new:
                    _check(site, rule, new[rule.bundle])
                if rule.challenger:
                    new[challenger_key(rule)] = _challenger(site, registry, rule, new[rule.bundle])
    except AppError as error:
        if set(names_of(site)) - set(known):
            raise
        return f"what the registry names was not taken ({error}); the node goes on with the models that it has"
    write_whole(resolved_file(site), json.dumps(new, indent=1) + "\n", sync=True)
    return ""


def _copied(site: Site, registry: Registry, name: str) -> dict[str, Any]:
    model, which = model_and_version(name)
    version = registry.version(model, which)
    place, key = site.node.folder / "models" / version.sha256, public_key_of(site)
    if not (place / version.name).is_dir():
        registry.export(model, str(version.number), place, key)
    elif key:
        registry.check_signature(version, copy_of(site, version.sha256), key)
    copy_of(site, version.sha256)  # or somebody has changed it
    return {"sha256": version.sha256, "version": version.number, "key": file_sha256(key) if key else ""}


def _check(site: Site, rule: Rule, found: Mapping[str, Any]) -> None:
    """Raises AppError if a bundle lacks what the rule needs."""
    folder = copy_of(site, found["sha256"])
    check_rule(replace(rule, bundle=str(folder), sha256=rule.sha256 or found["sha256"]), bundle_files(folder))


def _challenger(site: Site, registry: Registry, rule: Rule, champion: Mapping[str, Any]) -> dict[str, Any]:
    """The copy of a rule's challenger, and what the release gate says of it; or why it is not tried, under "why_not"."""
    try:
        found = _copied(site, registry, rule.challenger)
        _check(site, rule, found)
        _check_same_structures(*(bundle_files(copy_of(site, one["sha256"])) for one in (found, champion)))
    except AppError as error:
        return {"why_not": str(error)}
    one, other = (registry.version(*model_and_version(name)) for name in (rule.bundle, rule.challenger))
    assert site.registry is not None
    try:
        why, passed = registry.judged(one, other, site.registry.margins).reason, True
    except AppError as error:
        why, passed = str(error), False
    return {**found, "gate": {"passed": passed, "why": why}}


def _check_same_structures(challenger: BundleFiles, champion: BundleFiles) -> None:
    ours, theirs = ([segment.label for segment in bundle.segments] for bundle in (challenger, champion))
    if ours != theirs:
        raise InputRefusedError(
            f"{challenger.name} segments {', '.join(ours)}, the champion {', '.join(theirs)}; the same structures in the same "
            "order are needed; give the alias challenger to another version"
        )


def main() -> None:
    """Writes what went wrong to stderr; exit code 1 if there is no copy of a model."""
    try:
        site = read_site(Path(sys.argv[1]))
        (site.node.folder / "models").mkdir(parents=True, exist_ok=True)
        sys.stderr.write(resolve(site))
    except AppError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
