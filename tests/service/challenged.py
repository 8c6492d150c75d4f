"""Shared by tests of models: keys, a site whose registry has named two bundles, studies of patients, and what arrived."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nodes import make_study, write_site
from pydicom import dcmread

CHAMPION, CHALLENGER, NEXT = "a" * 64, "c" * 64, "b" * 64
RULE = """challenger = "registry:liver@challenger"
canary = 0.5
formats = ["sc"]
"""


def challenged_site(folder: Path, port: int, node: str = "") -> Path:
    """A site whose registry has named a champion and a challenger that has passed the release gate."""
    path = write_site(folder, port, rule=RULE, node=node)
    text = path.read_text().replace('bundle = "none"', 'bundle = "registry:liver@champion"')
    path.write_text(text + '[registry]\nfolder = "registry"\n')
    name_models(folder, CHAMPION, CHALLENGER)
    return path


def name_models(folder: Path, champion: str, challenger: str, *, passed: bool = True) -> None:
    """As the process that asks the registry writes it."""
    known: dict[str, Any] = {
        "registry:liver@champion": {"folder": f"models/{champion}/x", "sha256": champion, "version": 1},
        "challenger of any": {
            "folder": f"models/{challenger}/x", "sha256": challenger, "version": 2, "gate": {"passed": passed, "why": "so"},
        },
    }  # fmt: skip
    (folder / "node/models").mkdir(parents=True, exist_ok=True)
    (folder / "node/models/resolved.json").write_text(json.dumps(known))


def study_by(folder: Path, patient: str, wish: str = "") -> Path:
    """A study of a patient."""
    make_study(folder, 2, wish=wish)
    for path in folder.glob("*.dcm"):
        one = dcmread(path)
        one.PatientID = patient
        one.save_as(path)
    return folder


def arrived(folder: Path) -> Counter[str]:
    """How many objects of each bundle a destination has, by the beginning of its sha256."""
    return Counter(dcmread(path).ImageComments.partition(" by ")[2][:1] for path in folder.rglob("*.dcm"))


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    form, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, clear))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return private, public
