"""The acceptance report: JSON, signed with the key of the site, and a PDF with the same content."""

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from dicom_io.files import write_whole
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.report.blocks import Block, Cell, Conclusion, Facts, Heading, Table, Text, Tiles, Title, Tone
from monai_unet_app.report.pdf import typeset
from monai_unet_app.service.acceptance_checks import Acceptance, Check, State
from monai_unet_app.service.phantoms import PATIENT

_SECOND = 19  # characters of an ISO date and time


@dataclass(frozen=True)
class SiteKey:
    """The key that signs reports.

    Attributes:
        holder: The person or office that keeps the key, named in the report.
    """

    private: Ed25519PrivateKey
    holder: str

    @property
    def public(self) -> str:
        """The public half: 32 bytes in base64."""
        return base64.b64encode(self.private.public_key().public_bytes_raw()).decode()


def site_key(path: Path, holder: str) -> SiteKey:
    """The Ed25519 key in a PEM file; a missing file is made with a new key, readable for its owner only.

    Raises:
        UsageError: The file holds something else.
    """
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        # "x" and the mode at creation: no other key is overwritten, and nobody else can read this key at any moment.
        with open(path, "xb", opener=partial(os.open, mode=0o600)) as stream:
            stream.write(pem)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path.name} is not an unencrypted PEM key; an Ed25519 key is needed; name another file"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path.name} is a {type(key).__name__}; an Ed25519 key is needed; name another file")
    return SiteKey(key, holder)


def write_acceptance(acceptance: Acceptance, key: SiteKey, folder: Path) -> tuple[Path, Path]:
    """Writes `acceptance_<date>T<time>.json` and `.pdf`, each whole or not at all.

    The JSON holds the report, the holder of the key, the public key, and the signature of these three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = acceptance.document()
    # The signature also covers the holder and the public key: neither can be exchanged alone.
    signed = {"report": report, "holder": key.holder, "public_key": key.public}
    signature = base64.b64encode(key.private.sign(_canonical(signed))).decode()
    content = (json.dumps({**signed, "signature": signature}, indent=2) + "\n").encode()
    blocks = _blocks(acceptance, key, hashlib.sha256(content).hexdigest())
    pdf = typeset(blocks, f"Acceptance of {acceptance.site}", f"{acceptance.site}, {acceptance.began}")
    name = f"acceptance_{acceptance.began[:_SECOND].replace(':', '')}"
    written = folder / f"{name}.json", folder / f"{name}.pdf"
    write_whole(written[1], pdf)
    write_whole(written[0], content)
    return written


def verify_acceptance(path: Path) -> dict[str, Any]:
    """The report, if it is as it was signed; only the holder can confirm that the public key is theirs.

    Raises:
        InputRefusedError: The file is no such report, or it was changed.
    """
    try:
        content = json_of(path)
        signature = base64.b64decode(content.pop("signature"))
        Ed25519PublicKey.from_public_bytes(base64.b64decode(content["public_key"])).verify(
            signature, _canonical(content)
        )
    except InvalidSignature as error:
        raise InputRefusedError(
            f"{path.name} was changed after it was signed; an unchanged report is needed; ask the site for the original"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefusedError(
            f"{path.name} is not an acceptance report ({type(error).__name__}); the signed JSON is needed; check the path"
        ) from error
    return dict(content)


def _canonical(content: dict[str, Any]) -> bytes:
    # Sorted names and no spaces: a file that another program has formatted anew keeps its signature.
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _blocks(acceptance: Acceptance, key: SiteKey, digest: str) -> list[Block]:
    failed, not_tried = acceptance.of("failed"), acceptance.of("not tried")
    places = [check.place_mm for check in acceptance.checks if check.place_mm is not None]
    volumes = [check.volume_ml for check in acceptance.checks if check.volume_ml is not None]
    return [
        Title(f"Site acceptance of {acceptance.site}"),
        Conclusion(_summary(acceptance), "good" if acceptance.passed else "bad"),
        Tiles(
            (
                ("checks", str(len(acceptance.checks) - len(not_tried)), f"tried, of {len(acceptance.checks)}"),
                ("place", f"{max(places):.4f} mm" if places else "not measured", "largest error of a labelled voxel"),
                ("volume", f"{max(volumes):.4f} mL" if volumes else "not measured", "largest difference"),
            )
        ),
        *_section("What failed", failed),
        *_section("What was not tried", not_tried),
        Heading("What is not checked"),
        *(Text(f"\u2022 {text}") for text in acceptance.unchecked),
        Heading("What was checked"),
        _table([check for check in acceptance.checks if check.state != "not tried"]),
        Heading("With what"),
        Facts({**acceptance.versions, **{f"rule {name}": bundle for name, bundle in acceptance.bundles.items()}}),
        Heading("Signature"),
        Text(
            f"The JSON beside this page has the sha256 {digest} and is signed with an Ed25519 key that {key.holder} holds. "
            f"Its public half is {key.public}. This page itself is not signed."
        ),
        Text(
            f"PatientName and PatientID of everything that was sent begin with {PATIENT}; these objects stay where they "
            "were sent until somebody deletes them.",
            note=True,
        ),
    ]


def _summary(acceptance: Acceptance) -> str:
    failed, not_tried = len(acceptance.of("failed")), len(acceptance.of("not tried"))
    if not acceptance.checks:
        return "Nothing was tried"
    if acceptance.passed:
        return f"All {len(acceptance.checks)} checks passed"
    return f"{failed} of {len(acceptance.checks)} checks failed" + (
        f", {not_tried} were not tried" if not_tried else ""
    )


def _section(title: str, checks: list[Check]) -> list[Block]:
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
