"""Who may do what through the HTTP door: tokens with roles, of which only digests are kept.

A line of the tokens' file is `name role[,role] sha256`, made by `monai-unet token`; # begins a comment. The name of a reviewer
stands in verified reports: as DICOM has it, Family^Given. Whoever has no such name decides nothing, whatever their roles.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dicom_io.reading.headers import LONGEST_NAME, is_person_name
from monai_unet_app.errors import UsageError

Role = Literal["metrics", "submit", "read", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("metrics", "submit", "read", "reviewer", "admin")
"""metrics: figures only. submit: studies in. read: released results. reviewer: those too that are kept back, and decides on
them. admin: repairs, and sees what is said of all results, but no file that names a patient.
"""
_LINE = re.compile(r"(?P<name>[\w.@^'-]+(?: [\w.@^'-]+)*)\s+(?P<roles>[a-z,]+)\s+(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Holder:
    """Somebody with a token."""

    name: str
    roles: frozenset[str]

    def may(self, *roles: Role) -> bool:
        """Whether one of these roles is theirs; a reviewer reads, else no role holds another."""
        return bool(self.roles & set(roles)) or ("read" in roles and "reviewer" in self.roles)

    @property
    def may_decide(self) -> bool:
        """Whether they may verify, release or refuse a result: a reviewer with a person's name. No other role stands for it."""
        return "reviewer" in self.roles and is_person_name(self.name)


def new_token(name: str, roles: list[str]) -> tuple[str, str]:
    """A new token, and the line that lets its holder in.

    Raises:
        UsageError: A name that cannot stand in the file, no such role, or a reviewer without a person's name.
    """
    if "reviewer" in roles and not is_person_name(name):
        raise UsageError(
            f"the reviewer's name is {name!r}; Family^Given is needed, such as Rossi^Anna, because it stands in verified "
            "reports; give the person's name"
        )
    token = secrets.token_urlsafe(32)
    line = f"{name} {','.join(roles)} {_digest(token)}"
    _parsed(line, "the new line")
    return token, line


def read_tokens(path: Path) -> dict[str, Holder]:
    """sha256 of each token -> whose it is.

    Raises:
        UsageError: The file is absent, or a line is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({type(error).__name__}); a file of tokens is needed; make lines with monai-unet token"
        ) from error
    texts = [(number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    return dict(_parsed(text, f"{path.name}, line {number}") for number, text in texts if text)


def holder_of(token: str, known: dict[str, Holder]) -> Holder | None:
    """Whose token it is; None for nobody's. Takes as long for any token."""
    digest, found = _digest(token), None
    for one, holder in known.items():
        if hmac.compare_digest(one, digest):
            found = holder
    return found


def _parsed(text: str, where: str) -> tuple[str, Holder]:
    found = _LINE.fullmatch(text)
    roles = frozenset(found["roles"].split(",")) if found else frozenset()
    if found is None or len(found["name"]) > LONGEST_NAME or not roles <= set(ROLES):
        raise UsageError(
            f"{where} is no token's; a name, some of {', '.join(ROLES)} with commas and a sha256 are needed; make it with "
            "monai-unet token"
        )
    return found["digest"], Holder(found["name"], roles)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
