"""`models/parity.json`: what proves that a bundle's exports answer as torch does, and that results in fewer bits hold.

In float32 an export is held against torch whenever it is loaded. In fewer bits results differ, and what that does to them is
measured on subjects, by `bundle certify`; only then a bundle states anything about such results.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from monai_unet_app.config import ResultSettings
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.schemas import validate

PARITY = "models/parity.json"


class BundleWithParity(Protocol):
    """What a certificate is about."""

    @property
    def root(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def weights_sha256(self) -> str | None: ...


def parity_of(bundle: BundleWithParity) -> dict[str, Any]:
    """The certificate of a bundle's exports; empty if it has none. Raises InputRefusedError if it breaks its schema."""
    path = bundle.root / PARITY
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    _check(text)
    document: dict[str, Any] = json.loads(text)
    return document


@lru_cache(maxsize=8)  # to check takes 50 ms, and every case of a cohort asks
def _check(text: str) -> None:
    validate(json.loads(text), "parity")


def export_key(engine: str, precision: str) -> str:
    """The name of an export in the certificate: int8 has exports of its own, every other precision runs that in float32."""
    return f"{engine} int8" if precision == "int8" else engine


def export_named(bundle: BundleWithParity, engine: str, precision: str) -> str | None:
    """SHA-256 of the export that an engine of this bundle runs, as its certificate names it; None for torch, or without one."""
    if engine == "torch":
        return None
    entry = parity_of(bundle).get("exports", {}).get(export_key(engine, precision), {})
    sha256: str | None = entry.get("sha256")
    return sha256


def certified(bundle: BundleWithParity, settings: ResultSettings) -> dict[str, Any]:
    """What `bundle certify` found of results with these settings; empty if it has not measured them for these weights."""
    document = parity_of(bundle)
    entry: dict[str, Any] = document.get("results", {}).get(
        f"{settings.engine} {settings.precision} {settings.key}", {}
    )
    if not entry or document["weights_sha256"] != bundle.weights_sha256:
        return {}
    return entry if entry["export_sha256"] == export_named(bundle, settings.engine, settings.precision) else {}


def export_sha256(root: Path, files: Sequence[str]) -> str | None:
    """SHA-256 of the digests of the files of an export, one after the other; None if one is absent."""
    if not all((root / name).is_file() for name in files):
        return None
    return hashlib.sha256("".join(file_sha256(root / name) for name in files).encode()).hexdigest()
