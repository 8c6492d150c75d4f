"""Who asks, and whether they may: tokens of requests, and what each role opens."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request

from monai_unet_app.service.queue import RELEASED, Result
from monai_unet_app.service.tokens import Holder, Role

ASK = {"WWW-Authenticate": 'Basic realm="monai-unet", charset="UTF-8"'}


def is_from_elsewhere(request: Request) -> bool:
    """Whether a page of another site asks for a change with the password that a browser remembers."""
    origin = request.headers.get("Origin")
    if request.method == "GET" or origin is None:
        return False
    try:
        return urlsplit(origin).netloc != request.headers.get("Host", "")
    except ValueError:  # no URL at all
        return True


def needs(*roles: Role) -> Callable[[Request], Holder]:
    """A dependency: the holder of the token, if one of these roles is theirs; else 403."""

    def let_in(request: Request) -> Holder:
        holder: Holder = request.state.holder  # the guard let nobody else through
        if not holder.may(*roles):
            raise HTTPException(
                403, f"the role {' or '.join(roles)} is needed; {holder.name} has {', '.join(sorted(holder.roles))}"
            )
        return holder

    return let_in


def decides(request: Request) -> Holder:
    """A dependency: the holder of the token, if they are a reviewer with a person's name; else 401 or 403."""
    holder = needs("reviewer")(request)
    if not holder.may_decide:
        raise HTTPException(
            403,
            f"only a person decides; {holder.name} is no person's name; a token with a name such as Rossi^Anna and the role "
            "reviewer is needed; monai-unet token makes it",
        )
    return holder


Submitter = Annotated[Holder, Depends(needs("submit"))]
Reader = Annotated[Holder, Depends(needs("read"))]
Onlooker = Annotated[Holder, Depends(needs("read", "admin"))]
"""Sees what is said of studies and results, which names nobody; opens no file of them."""

Reviewer = Annotated[Holder, Depends(needs("reviewer"))]
Decider = Annotated[Holder, Depends(decides)]
"""Decides about results: a reviewer who is named as a person."""

Admin = Annotated[Holder, Depends(needs("admin"))]


def may_open(holder: Holder, result: Result) -> bool:
    """Whether the content of a result may be shown: of a released one to all who may ask, of others to a reviewer only."""
    return result.state in RELEASED or holder.may("reviewer")


def token_of(authorization: str) -> str:
    """The bearer token, or the password of basic authentication; empty where there is neither."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, or no UTF-8
            return ""
    return ""
