"""The acceptance report: JSON that is signed with the site's own key, and the same on paper."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.report.blocks import Block, Cell, Facts, Heading, Table, Text, Tiles, Title, Tone, Verdict
from monai_unet_app.report.pdf import typeset
from monai_unet_app.service.commission import Acceptance, Check, State
from monai_unet_app.service.phantoms import PATIENT

_SECOND = 19  # characters of an ISO date and time


@dataclass(frozen=True)
class SiteKey:
    """The key that reports are signed with, and who keeps it.

    Attributes:
        holder: A person or an office, in words; stands in the report.
    """

    private: Ed25519PrivateKey
    holder: str

    @property
    def public(self) -> str:
        """The public half: 32 bytes in base64."""
        return base64.b64encode(self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def site_key(path: Path, holder: str) -> SiteKey:
    """The Ed25519 key in a PEM file, made where it is absent, for its owner's eyes only.

    Raises:
        UsageError: The file holds something else.
    """
    if not path.exists():
        made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(made)
    try:
        found = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path.name} is no unencrypted PEM key; an Ed25519 key is needed; name another file"
        ) from error
    if not isinstance(found, Ed25519PrivateKey):
        raise UsageError(f"{path.name} is a {type(found).__name__}; an Ed25519 key is needed; name another file")
    return SiteKey(found, holder)


def write_acceptance(found: Acceptance, key: SiteKey, folder: Path) -> tuple[Path, Path]:
    """Writes `acceptance_<date>T<time>.json` and `.pdf`, both whole or not at all; no other report is replaced.

    The JSON holds the report and beside it who signed it; the signature is over the report, the holder and the public key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = found.document()
    signed = {"report": report, "holder": key.holder, "public_key": key.public}
    signature = base64.b64encode(key.private.sign(_canonical(signed))).decode()
    content = (json.dumps({**signed, "signature": signature}, indent=2) + "\n").encode()
    name = f"acceptance_{found.began[:_SECOND].replace(':', '')}"
    files = {folder / f"{name}.pdf": _paper(found, key, content), folder / f"{name}.json": content}
    for path, data in files.items():
        part = path.with_suffix(path.suffix + ".part")
        part.write_bytes(data)
        part.replace(path)
    return folder / f"{name}.json", folder / f"{name}.pdf"


def verify_acceptance(path: Path) -> dict[str, Any]:
    """The report, if it is what was signed; whose key it was, only its holder can say.

    Raises:
        InputRefusedError: It is no such report, or it was changed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(content.pop("signature"))
        Ed25519PublicKey.from_public_bytes(base64.b64decode(content["public_key"])).verify(
            signature, _canonical(content)
        )
    except InvalidSignature as error:
        raise InputRefusedError(
            f"{path.name} is not what was signed; an unchanged report is needed; ask the site for the original"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefusedError(
            f"{path.name} is no acceptance report ({type(error).__name__}); check the path"
        ) from error
    return dict(content)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _paper(found: Acceptance, key: SiteKey, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    return typeset(_blocks(found, key, digest), f"Acceptance of {found.site}", f"{found.site}, {found.began}")


def _blocks(found: Acceptance, key: SiteKey, digest: str) -> list[Block]:
    failed, left_out = found.of("failed"), found.of("not tried")
    places = [check.place_mm for check in found.checks if check.place_mm is not None]
    volumes = [check.volume_ml for check in found.checks if check.volume_ml is not None]
    return [
        Title(f"Site acceptance of {found.site}"),
        Verdict(_verdict(found), "good" if found.passed else "bad"),
        Tiles(
            (
                ("checks", str(len(found.checks) - len(left_out)), f"tried, of {len(found.checks)}"),
                ("place", f"{max(places):.4f} mm" if places else "not measured", "largest error of a labelled voxel"),
                ("volume", f"{max(volumes):.4f} mL" if volumes else "not measured", "largest difference"),
            )
        ),
        *_some("What failed", failed),
        *_some("What was not tried", left_out),
        Heading("What no check looks at"),
        *(Text(f"\u2022 {what}") for what in found.unchecked),
        Heading("What was checked"),
        _table([check for check in found.checks if check.state != "not tried"]),
        Heading("With what"),
        Facts({**found.versions, **{f"rule {name}": told for name, told in found.bundles.items()}}),
        Heading("Signature"),
        Text(
            f"The JSON beside this page has the sha256 {digest} and is signed with an Ed25519 key that {key.holder} holds. "
            f"Its public half is {key.public}. This page itself is not signed.",
        ),
        Text(
            f"PatientName and PatientID of everything that was sent begin with {PATIENT}; it stays where it was sent until "
            "somebody deletes it.",
            note=True,
        ),
    ]


def _verdict(found: Acceptance) -> str:
    failed, left_out = len(found.of("failed")), len(found.of("not tried"))
    if not found.checks:
        return "Nothing was tried"
    if found.passed:
        return f"All {len(found.checks)} checks passed"
    return f"{failed} of {len(found.checks)} checks failed" + (f", {left_out} were not tried" if left_out else "")


def _some(title: str, checks: list[Check]) -> list[Block]:
    return [Heading(title), _table(checks)] if checks else []


_TONES: dict[State, Tone] = {"passed": "good", "failed": "bad", "not tried": ""}


def _table(checks: list[Check]) -> Table:
    rows = tuple(
        (
            Cell(check.state, tone=_TONES[check.state]),
            Cell(check.what, check.said),
            check.where,
            f"{check.seconds:.2f} s",
            "" if check.place_mm is None else f"{check.place_mm:.4f} mm",
            "" if check.volume_ml is None else f"{check.volume_ml:.4f} mL",
        )
        for check in checks
    )
    return Table(("", "check", "where", "time", "place", "volume"), rows, words=3)
