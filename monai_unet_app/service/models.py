"""The bundles of rules that name a model of a registry: verified copies in the node's folder, `models/<sha256>/<name>`.

A process of its own asks the registry (`monai_unet_app.lifecycle.resolve`), and writes `models/resolved.json`. If the registry
is away the node goes on with its copies, whose sha256 is checked again, and says so.
"""

import hashlib
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.service.site import PREFIX, Rule, Site

_logger = logging.getLogger(__name__)


def names_of(site: Site) -> list[str]:
    """The models that rules of a site name as their bundles, each once."""
    return list(dict.fromkeys(rule.bundle for rule in site.rules if rule.is_registered))


def challenger_key(rule: Rule) -> str:
    """Key of the challenger of a rule in `resolved`: two rules may hold the same model against different champions."""
    return f"challenger of {rule.name}"


def copy_of(site: Site, sha256: str) -> Path:
    """The copy of a bundle in the node's folder.

    Raises:
        AppError: There is none, or somebody has changed it.
    """
    place = site.node.folder / "models" / sha256
    folder = next(place.glob("*/"), place / "none")
    if not folder.is_dir() or bundle_files(folder).sha256 != sha256:
        raise AppError(
            f"models/{sha256} of the node has no bundle of that sha256: it is lost, or somebody has changed it; remove the "
            "folder, and start the node while its registry answers"
        )
    return folder


def model_and_version(name: str) -> tuple[str, str]:
    """Model, and number or alias of its version. Raises UsageError if the name has another form."""
    model, at, which = name.removeprefix(PREFIX).partition("@")
    if not (model and at and which):
        raise UsageError(f"the bundle is {name!r}; registry:MODEL@ALIAS is needed, such as registry:liver@champion")
    return model, which


def resolved_file(site: Site) -> Path:
    """Says which copy each name stands for."""
    return site.node.folder / "models/resolved.json"


def public_key_of(site: Site) -> Path | None:
    """The key by which bundles of the registry must be signed; None: they need not be."""
    return site.registry.public_key if site.registry else None


def resolved(site: Site) -> dict[str, dict[str, Any]]:
    """Name -> "sha256" and "version" of its copy, as it was when the registry was last asked; a copy whose signature was not
    checked by the key that the site has now is left out.

    Of a challenger, see `challenger_key`, also the "gate": whether it has "passed", and
    "why"; or only "why_not": why it is not tried.
    """
    file, key = resolved_file(site), public_key_of(site)
    try:
        by = hashlib.sha256(key.read_bytes()).hexdigest() if key else ""
        found = dict(json_of(file)) if file.exists() else {}
        return {name: one for name, one in found.items() if "why_not" in one or by in ("", one.get("key"))}
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read ({error.strerror}); it is needed; put it back, or let the node's user read it"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{file} is damaged ({error}); remove it, and start the node while the registry answers"
        ) from error


def ask_registry(site: Site) -> str:
    """Brings the copies up to date in a process of its own, if a rule needs one; gives why those of before stay, else nothing.

    Raises:
        UsageError: The registry does not answer, or refuses, and there is no copy of a model.
    """
    if not names_of(site):
        return ""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "monai_unet_app.lifecycle.resolve", str(site.path)],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    said = " ".join(done.stderr.split())[-600:]
    if done.returncode:
        raise UsageError(said or "the registry could not be asked")
    if said:
        _logger.warning("%s", said)
    return said


def with_models(site: Site) -> Site:
    """The site with the verified copies in the place of names.

    Raises:
        UsageError: There is no copy of a model.
        AppError: A copy is not what was registered.
    """
    if not names_of(site):
        return site
    known = resolved(site)
    rules = []
    for rule in site.rules:
        if rule.is_registered:
            if rule.bundle not in known:
                raise UsageError(
                    f"rule {rule.name}: there is no copy of {rule.bundle} in {resolved_file(site).parent}; start the node "
                    "while its registry answers"
                )
            sha256 = known[rule.bundle]["sha256"]
            rule = replace(rule, bundle=str(copy_of(site, sha256)), sha256=rule.sha256 or sha256)
        rules.append(rule)
    return replace(site, rules=tuple(rules))
