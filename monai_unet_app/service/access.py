"""The token of a request, and the permissions of each role."""

import base64
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request

from monai_unet_app.service.rows import READABLE, Result
from monai_unet_app.service.tokens import Holder, Role

ASK = {"WWW-Authenticate": 'Basic realm="monai-unet", charset="UTF-8"'}


def is_from_elsewhere(request: Request) -> bool:
    """Whether a page of another site asks for a change, with the password that the browser remembers for this node."""
    # Browsers send Origin with every method but GET and HEAD (Fetch standard). A request without it comes from a
    # program, which shows its token on purpose.
    origin = request.headers.get("Origin")
    if request.method == "GET" or origin is None:
        return False
    try:
        return urlsplit(origin).netloc != request.headers.get("Host", "")
    except ValueError:  # no URL at all
        return True


def needs(*roles: Role) -> Callable[[Request], Holder]:
    """A dependency: the holder of the token if they have one of these roles, else 403."""

    def checked_holder(request: Request) -> Holder:
        holder: Holder = request.state.holder  # the guard has checked the token
        if not holder.may(*roles):
            raise HTTPException(
                403, f"the role {' or '.join(roles)} is needed; {holder.name} has {', '.join(sorted(holder.roles))}"
            )
        return holder

    return checked_holder


def decides(role: Role) -> Callable[[Request], Holder]:
    """A dependency: the holder of the token if they have this role and a person's name, else 403."""

    def checked_person(request: Request) -> Holder:
        holder = needs(role)(request)
        if not holder.decides_as(role):
            raise HTTPException(
                403,
                f"only a person may decide; {holder.name} is not a person's name; a token with a name such as Rossi^Anna and "
                f"the role {role} is needed; monai-unet node token makes it",
            )
        return holder

    return checked_person


Watcher = Annotated[Holder, Depends(needs("metrics", "read", "approver", "admin"))]
"""Sees what is said of rules and bundles, which names no study."""

Submitter = Annotated[Holder, Depends(needs("submit"))]
Reader = Annotated[Holder, Depends(needs("read"))]
Onlooker = Annotated[Holder, Depends(needs("read", "admin"))]
"""Sees the state of studies and results, which names no patient, and opens none of their files."""

Reviewer = Annotated[Holder, Depends(needs("reviewer"))]
Decider = Annotated[Holder, Depends(decides("reviewer"))]
"""Decides about results: a reviewer whose token has a person's name."""

Approver = Annotated[Holder, Depends(decides("approver"))]
"""Decides about models: an approver whose token has a person's name."""

Stopper = Annotated[Holder, Depends(needs("approver", "admin"))]
"""May end what is tried."""

Admin = Annotated[Holder, Depends(needs("admin"))]


def may_open(holder: Holder, result: Result) -> bool:
    """Whether a holder may see the content of a result: a released result is for all readers, others only for reviewers."""
    return result.state in READABLE or holder.may("reviewer")


def token_of(authorization: str) -> str:
    """The bearer token, or the password of basic authentication; empty if the header has neither."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            # RFC 7617, 2: a user name has no colon, so everything after the first colon is the password.
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no UTF-8
            return ""
    return ""
