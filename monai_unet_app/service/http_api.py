"""The HTTP door: studies in, results out, a status page, figures; behind it the same queue as behind DICOM.

OpenAPI describes it at /openapi.json. Whoever comes shows a token, as a bearer or as the password of a browser's question.
Answers name studies by UID and nobody by name.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, cast

import uvicorn
from fastapi import Body, Depends, FastAPI, Form, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import AfterValidator, StrictBool
from starlette.datastructures import FormData, UploadFile

from dicom_io.reading.headers import is_uid
from monai_unet_app import __version__
from monai_unet_app.data.schemas import schema
from monai_unet_app.errors import AppError, InputRefusedError, without_folders
from monai_unet_app.service.access import (
    Admin,
    Decider,
    Onlooker,
    Reader,
    Reviewer,
    Submitter,
    may_open,
    needs,
)
from monai_unet_app.service.guard import MOST_WORDS_BYTES, BoundedRoute, Guard, is_json
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.node_metrics import exposition
from monai_unet_app.service.pages import SOON_S, ReviewPages
from monai_unet_app.service.queue import DecidedError, Result
from monai_unet_app.service.reviews import PAGE_S, decide, refuse, release, standing
from monai_unet_app.service.server import Connections, loop_of
from monai_unet_app.service.site_file import HttpConfig
from monai_unet_app.service.status import find_page, status_page, waiting_page
from monai_unet_app.service.tokens import Holder, Tokens
from monai_unet_app.service.uploads import Upload, kind_of, take_dicom, take_nifti, take_zip

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_LARGEST_NUMBER = 2**63 - 1  # that SQLite has
_OWN_POLICY = {"Content-Security-Policy": "frame-ancestors 'none'"}
"""Of a review page, which has the rest of its policy in its head, and of its PDF."""

_LONGEST_PAGE_S = 3 * PAGE_S  # with an earlier result, without it, and after somebody else's
_DECISION = schema("review_verdict")
_FORM = {
    "type": "object",
    "required": ["verdict", "mask"],
    "properties": {
        "verdict": {**_DECISION, "description": "JSON; its decision is corrected"},
        "mask": {"type": "string", "format": "binary", "description": "NIfTI, SEG or RTSTRUCT on the image's grid"},
    },
}
_VERDICT = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _DECISION}, "multipart/form-data": {"schema": _FORM}},
    }
}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
Number = Annotated[int, PathParameter(ge=1, le=_LARGEST_NUMBER)]
_MASKS = (".nii.gz", ".nii", ".dcm", ".nrrd", ".mha", ".png")


def make_app(node: Node, config: HttpConfig) -> FastAPI:
    """The application in front of a node.

    Raises:
        UsageError: The file of tokens cannot be used.
    """
    app = FastAPI(title="monai-unet node", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = BoundedRoute
    app.state.config = config
    app.add_middleware(Guard, config=config, tokens=Tokens(config.tokens), audit=node.audit)

    @app.exception_handler(RequestValidationError)
    async def _unfit(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"detail": f"{said}; GET /openapi.json says what is needed"}, 422)

    _add_health(app, node)
    _add_pages(app, node)
    _add_studies(app, node, config)
    _add_results(app, node)
    _add_reviews(app, node)
    _add_repairs(app, node)
    return app


def _is_form(request: Request) -> bool:
    return request.headers.get("Content-Type", "").startswith("multipart/form-data")


def _printable(reason: str) -> str:
    if not reason.isprintable():
        raise ValueError("it has characters that cannot be shown; plain text on one line is needed")
    return reason


Reason = Annotated[
    str,
    Body(embed=True, min_length=1, max_length=500, pattern=r"\S", description="why; without names of patients"),
    AfterValidator(_printable),
]


def _add_health(app: FastAPI, node: Node) -> None:
    @app.get("/health", summary="The process is alive")
    def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Everything that is needed to work at a study works; else 503 and what does not")
    def ready() -> Response:
        failing = node.failing()
        return JSONResponse({"ready": False, "failing": failing}, 503) if failing else JSONResponse({"ready": True})

    @app.get("/metrics", summary="Figures for Prometheus", dependencies=[Depends(needs("metrics", "read", "admin"))])
    def metrics() -> Response:
        return Response(exposition(node), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI, node: Node) -> None:
    known = Hints(node.store.folder, node.config.find_by if node.config.show_identity else ())

    def hints_for(holder: Holder) -> Hints | None:
        """Hints are identity: reviewers see them; who only reads or administers does not."""
        return known if known.names and holder.may("reviewer") else None

    @app.get("/", summary="What the node is doing", response_class=HTMLResponse)
    def status(
        holder: Onlooker, still: Annotated[bool, Query(description="the page does not load itself anew")] = False
    ) -> str:
        return status_page(node, hints=hints_for(holder), holder=holder, still=still)

    @app.get("/find", summary="A page to find a study", response_class=HTMLResponse)
    def find_form(holder: Onlooker) -> str:
        return find_page(node, None, hints=hints_for(holder), holder=holder)

    @app.post(
        "/find",
        summary="Studies by a part of their UID; for reviewers by accession number",
        response_class=HTMLResponse,
    )
    def find(holder: Onlooker, text: Annotated[str, Form(max_length=64)]) -> str:
        node.audit.write("searched", who=holder.name)
        return find_page(node, text, hints=hints_for(holder), holder=holder)


def _add_studies(app: FastAPI, node: Node, config: HttpConfig) -> None:
    @app.post(
        "/studies",
        status_code=202,
        summary="A zip of DICOM objects, one object, or a NIfTI image for a rule",
        openapi_extra=_UPLOAD,
    )
    async def submit(
        request: Request,
        holder: Submitter,
        rule: Annotated[str, Query(description="for a NIfTI image: the rule whose bundle segments it")] = "",
    ) -> dict[str, Any]:
        if (full := node.why_full()) != "":
            raise HTTPException(507, full)
        with _part(node.folder) as path:
            await _receive(request, path)
            return await run_in_threadpool(_take, node, path, rule, config, holder.name)

    @app.get("/studies/{study}", summary="What became of a study")
    def study(study: str, holder: Onlooker) -> dict[str, Any]:
        _checked_uid(study)
        jobs = node.queue.jobs_of(study)
        if not jobs and not node.is_arriving(study):
            raise HTTPException(404, "no such study")
        return {
            "study": study,
            "arriving": node.is_arriving(study),
            "versions": [
                {**asdict(job), "results": [_told(node, result, holder) for result in node.queue.results_of(job.id)]}
                for job in jobs
            ],
        }


def _take(node: Node, path: Path, rule: str, config: HttpConfig, who: str) -> dict[str, Any]:
    """Puts an upload where C-STORE puts what it gets, and says what was in it."""
    try:
        found = _taken(node, path, rule, config)
    except InputRefusedError as error:
        raise HTTPException(422, str(error)) from error
    if not found.instances:
        raise HTTPException(422, found.refused[0] if found.refused else "the archive is empty")
    node.audit.write("submitted", who=who, studies=sorted(found.instances))
    return {"studies": found.instances, "refused": found.refused}


def _taken(node: Node, path: Path, rule: str, config: HttpConfig) -> Upload:
    kind, most_member = kind_of(path), node.config.instance_gb * 1e9
    if kind == "zip":
        return take_zip(path, node.store, config.most_upload_gb * 4e9, most_member)
    if kind == "dicom":
        return take_dicom(path, node.store, most_member)
    if node.site.rule(rule) is None:
        names = ", ".join(one.name for one in node.site.rules)
        raise InputRefusedError(f"rule is {rule!r}; for a NIfTI image one of {names} is needed; add ?rule=NAME")
    study, is_new = take_nifti(path, node.store.folder, rule)
    if is_new:
        node.arrivals.came(study, 1)
    return Upload({study: 1})


async def _receive(request: Request, path: Path) -> None:
    """The body of a request, or the first file of a form, to a file."""
    if _is_form(request):
        async with _form(request, max_files=1, max_fields=8) as form:
            sent = next((part for part in form.values() if not isinstance(part, str)), None)
            if sent is None:
                raise HTTPException(422, "the form holds no file; one is needed")
            await run_in_threadpool(_copy, sent.file, path)
        return
    with path.open("wb") as stream:
        async for chunk in request.stream():
            stream.write(chunk)


@asynccontextmanager
async def _form(request: Request, *, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """The fields of a form; 400 where it is broken."""
    try:
        form = await request.form(max_files=max_files, max_fields=max_fields)
    except (LookupError, ValueError) as error:  # a character set that is none, for one
        raise HTTPException(400, "the form is broken; multipart/form-data is needed; send it again") from error
    try:
        yield form
    finally:
        await form.close()


def _copy(sent: IO[bytes], path: Path) -> None:
    with path.open("wb") as stream:
        shutil.copyfileobj(sent, stream)


@contextmanager
def _part(folder: Path, ending: str = ".part") -> Iterator[Path]:
    """A file that is gone afterwards."""
    uploads = folder / "uploads"
    uploads.mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=uploads, suffix=ending)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _add_results(app: FastAPI, node: Node) -> None:
    @app.get("/results/{number}", summary="One result: its state, what the bundle says of it, its files")
    def result(number: Number, holder: Onlooker) -> dict[str, Any]:
        return _told(node, _found(node, number), holder)

    @app.get("/results/{number}/files/{name:path}", summary="One file of a result", response_class=FileResponse)
    def file(number: Number, name: str, holder: Reader) -> FileResponse:
        found = _found(node, number)
        if not may_open(holder, found):
            raise HTTPException(
                403, f"the result is {found.state}; only the role reviewer opens one that is not released"
            )
        path = _files(node, found).get(name)  # only looked up: a name may be longer than the system's, or hold a NUL
        if path is None:
            raise HTTPException(404, "no such file")
        node.audit.write("read", who=holder.name, result=number, file=path.name)
        return FileResponse(path, filename=path.name)

    @app.post("/results/{number}/release", summary="A result that was held back goes out")
    def let_go(
        number: Number,
        holder: Decider,
        reason: Reason,
        confirm_rejected: Annotated[
            StrictBool, Body(embed=True, description="needed for a result that the quality gate rejected")
        ] = False,
    ) -> dict[str, Any]:
        _found(node, number)
        with _answered(node):
            release(node, number, holder.name, reason, confirmed=confirm_rejected)
        return _told(node, _found(node, number), holder)

    @app.post("/results/{number}/refuse", summary="A result that was held back will not go out")
    def keep_back(number: Number, holder: Decider, reason: Reason) -> dict[str, Any]:
        _found(node, number)
        with _answered(node):
            refuse(node, number, holder.name, reason)
        return _told(node, _found(node, number), holder)


@contextmanager
def _answered(node: Node) -> Iterator[None]:
    """Errors of a decision as answers: 409 for whoever came too late, 422 for what cannot be done."""
    try:
        yield
    except DecidedError as error:
        raise HTTPException(409, str(error)) from error
    except AppError as error:
        raise HTTPException(422, without_folders(str(error), node.folder)) from error


def _add_reviews(app: FastAPI, node: Node) -> None:
    pages = ReviewPages(node)

    def made(result: Result, longest_s: float) -> Path:
        try:
            return pages.make(result).result(longest_s)
        except AppError as error:
            raise HTTPException(422, without_folders(str(error), node.folder)) from error

    @app.get(
        "/results/{number}/review",
        summary="The page on which a result is reviewed; names the patient. A browser gets 202 and waits while it is made",
    )
    def page(number: Number, request: Request, holder: Reviewer) -> Response:
        found = _found(node, number)
        is_browser = "text/html" in request.headers.get("Accept", "")
        try:
            path = made(found, SOON_S if is_browser else _LONGEST_PAGE_S)
        except TimeoutError:
            return HTMLResponse(waiting_page(node, number, pages.seconds(found)), 202, {"Retry-After": "2"})
        node.audit.write("reviewed", who=holder.name, study=found.study, result=number)
        return FileResponse(path, media_type="text/html", headers=_OWN_POLICY)

    @app.get("/results/{number}/review.pdf", summary="The same as a PDF; names the patient")
    def paper(number: Number, holder: Reviewer) -> FileResponse:
        found = _found(node, number)
        path = made(found, _LONGEST_PAGE_S).with_name("review.pdf")
        if not path.is_file():
            raise HTTPException(404, "this review has no PDF")
        node.audit.write("read", who=holder.name, study=found.study, result=number, file=path.name)
        return FileResponse(
            path, media_type="application/pdf", headers=_OWN_POLICY, filename=f"result-{number}.pdf",
            content_disposition_type="inline",
        )  # fmt: skip

    @app.get("/results/{number}/verdict", summary="Who asks, whether they may decide, and what was decided already")
    def stands(number: Number, holder: Reviewer) -> dict[str, Any]:
        stands = standing(node, _found(node, number))
        return {"who": holder.name, **stands, "open": stands["open"] and holder.may_decide}

    @app.post(
        "/results/{number}/verdict",
        summary="What a reviewer decided: JSON of a review page, or a form with the mask too",
        openapi_extra=_VERDICT,
    )
    async def verdict(number: Number, request: Request, holder: Decider) -> dict[str, Any]:
        found = _found(node, number)
        if is_json(request):
            return await run_in_threadpool(_decided, node, found, await request.body(), holder.name)
        if not _is_form(request):
            raise HTTPException(415, "JSON of a review page is needed, or a form with fields verdict and mask")
        async with _form(request, max_files=2, max_fields=4) as form:
            text, mask = form.get("verdict"), form.get("mask")
            if text is None or mask is None or isinstance(mask, str):
                raise HTTPException(422, "a form with fields verdict (JSON) and mask (a file) is needed")
            told = text if isinstance(text, str) else await text.read(MOST_WORDS_BYTES)
            with _part(node.folder, _ending(mask)) as path:
                await run_in_threadpool(_copy, mask.file, path)
                return await run_in_threadpool(_decided, node, found, told, holder.name, path)


def _ending(mask: UploadFile) -> str:
    """By which a mask's file is read as what it is."""
    return next((one for one in _MASKS if str(mask.filename).lower().endswith(one)), ".dcm")


def _decided(node: Node, result: Result, text: str | bytes, who: str, mask: Path | None = None) -> dict[str, Any]:
    """The record of a verdict that came as text."""
    with _answered(node):
        return decide(node, result, _parsed(text), who, mask)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "the verdict is no JSON, or its parts lie too deep in each other") from error
    if not isinstance(found, dict):
        raise HTTPException(422, "the verdict is no JSON object")
    return found


def _add_repairs(app: FastAPI, node: Node) -> None:
    @app.post(
        "/studies/{study}/reprocess", status_code=202, summary="A study is worked at again, by the rules as they are"
    )
    def reprocess(study: str, request: Request, holder: Admin) -> Response:
        _checked_uid(study)
        if not node.reprocess(study, holder.name):
            raise HTTPException(404, "no such study is complete; one that was is worked at again")
        return _done(request, {"study": study}, 202)

    @app.post("/jobs/{number}/retry", summary="A dead letter is worked at again")
    def retry_job(number: Number, request: Request, holder: Admin) -> Response:
        return _done(request, _retried(node, "job", number, holder.name))

    @app.post("/deliveries/{number}/retry", summary="A dead delivery is tried again")
    def retry_delivery(number: Number, request: Request, holder: Admin) -> Response:
        return _done(request, _retried(node, "delivery", number, holder.name))


def _done(request: Request, told: dict[str, Any], status: int = 200) -> Response:
    """What was done; whoever pressed a button of the status page is led back to it."""
    if "text/html" in request.headers.get("Accept", ""):
        return RedirectResponse("/", 303)
    return JSONResponse(told, status)


def _retried(node: Node, kind: Literal["job", "delivery"], number: int, who: str) -> dict[str, int]:
    if not node.retry(kind, number, who):
        raise HTTPException(404, f"no {kind} {number} is a dead letter; only those are tried again")
    return {kind: number}


def _found(node: Node, number: int) -> Result:
    result = node.queue.result(number)
    if result is None:
        raise HTTPException(404, "no such result")
    return result


def _checked_uid(study: str) -> None:
    if not is_uid(study):
        raise HTTPException(404, "no such study; a StudyInstanceUID is needed")


def _told(node: Node, result: Result, holder: Holder) -> dict[str, Any]:
    """What is said of a result; "files" and "document" are empty for whoever may not open it."""
    files = _files(node, result) if may_open(holder, result) else {}
    said = next((json.loads(path.read_text()) for name, path in files.items() if name.endswith("_result.json")), None)
    return {
        **{key: value for key, value in asdict(result).items() if key != "folder"},
        "deliveries": [asdict(one) for one in node.queue.deliveries_of(result.id)],
        "files": list(files),
        "document": said,
    }


def _files(node: Node, result: Result) -> dict[str, Path]:
    """The files of a result by their names below its folder; none where it has no folder."""
    folder = node.result_folder(result)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if result.folder else []
    return {str(path.relative_to(folder)): path for path in files}


class Door:
    """The HTTP server, from `with` to its end, in a thread of its own."""

    def __init__(self, node: Node, config: HttpConfig) -> None:
        """Raises UsageError as `make_app`."""
        self._address = f"{config.host}:{config.port}"
        connections = Connections(config.most_connections, config.most_per_address, config.head_s)
        settings = uvicorn.Config(
            make_app(node, config),
            http=cast(Any, connections.make),
            ws="none",
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=10,
            ssl_certfile=config.tls.certificate if config.tls else None,
            ssl_keyfile=config.tls.key if config.tls else None,
        )
        self._server = uvicorn.Server(settings)
        self._head_s = config.head_s
        self._thread = threading.Thread(target=self._run, name="http door", daemon=True)

    @property
    def port(self) -> int:
        """The port that is bound."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: loop_of(self._head_s)) as runner:
            runner.run(self._server.serve())

    def __enter__(self) -> Door:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise AppError(
                    f"the HTTP door cannot be opened at {self._address}; a free port of this machine is needed; stop what uses "
                    "it or choose another"
                )
            time.sleep(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join()
