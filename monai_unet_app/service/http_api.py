"""The HTTP API of a node: it takes studies, and serves results, a status page and metrics, over the same queue as DICOM.

OpenAPI describes the routes at /openapi.json. A caller shows a token, as a bearer token or as the password of basic
authentication. Answers name studies by UID and never name a patient.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, Form, HTTPException, Query, Request
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import AfterValidator, StrictBool

from dicom_io.reading.headers import is_uid
from monai_unet_app import __version__
from monai_unet_app.data.schemas import json_of, schema
from monai_unet_app.errors import AppError, InputRefusedError, without_folders
from monai_unet_app.service import access
from monai_unet_app.service.approvals import drift_of, freeze_reference
from monai_unet_app.service.audit import TrailError
from monai_unet_app.service.guard import MOST_TEXT_BYTES, TRAIL_FAULT, BoundedRoute, Guard, is_json
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.http_body import copy_upload, is_form, mask_ending, opened_form, receive_file, scratch_file
from monai_unet_app.service.maintenance import declare_maintenance
from monai_unet_app.service.node import Node
from monai_unet_app.service.node_metrics import exposition
from monai_unet_app.service.pages import SOON_S, ReviewPages
from monai_unet_app.service.reviews import PAGE_S, decide, refuse, release, standing
from monai_unet_app.service.rows import DecidedError, Result
from monai_unet_app.service.server import HttpServer
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.status import Viewer, find_page, status_page, waiting_page
from monai_unet_app.service.tokens import Holder, Tokens
from monai_unet_app.service.uploads import Upload, kind_of, take_dicom, take_nifti, take_zip

_LARGEST_NUMBER = 2**63 - 1  # of an SQLite integer
_PAGE_POLICY = {"Content-Security-Policy": "frame-ancestors 'none'"}
"""For a review page, which states the rest of its policy in its head, and for its PDF."""

_LONGEST_PAGE_S = 3 * PAGE_S  # with an earlier result, without it, and after another page


def _body(schemas: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of a request body: media type -> JSON schema."""
    content = {media_type: {"schema": form} for media_type, form in schemas.items()}
    return {"requestBody": {"required": True, "content": content}}


_FILE = {"type": "string", "format": "binary"}
_UPLOAD = _body(
    {"application/octet-stream": _FILE, "multipart/form-data": {"type": "object", "properties": {"file": _FILE}}}
)
_DECISION = schema("review_decision")
_FORM = {
    "type": "object",
    "required": ["decision", "mask"],
    "properties": {
        "decision": {**_DECISION, "description": "JSON; its decision is corrected"},
        "mask": {**_FILE, "description": "NIfTI, SEG or RTSTRUCT on the image's grid"},
    },
}
_DECIDED = _body({"application/json": _DECISION, "multipart/form-data": _FORM})


def _printable(reason: str) -> str:
    if not reason.isprintable():
        raise ValueError("it has characters that cannot be shown; plain text on one line is needed")
    return reason


Number = Annotated[int, PathParameter(ge=1, le=_LARGEST_NUMBER)]
Reason = Annotated[
    str,
    Body(embed=True, min_length=1, max_length=500, pattern=r"\S", description="why; without names of patients"),
    AfterValidator(_printable),
]


def serve(node: Node, config: HttpConfig) -> HttpServer:
    """The HTTP server of a node, which runs within `with`.

    Raises:
        UsageError: The file of tokens cannot be used.
    """
    # No docs_url and no redoc_url: FastAPI's pages there load scripts from another server.
    app = FastAPI(title="monai-unet node", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.route_class = BoundedRoute
    app.state.config = config
    app.add_middleware(Guard, config=config, tokens=Tokens(config.tokens), audit=node.audit)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer quotes the input, which may name a patient.
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        return JSONResponse({"detail": f"{problems}; GET /openapi.json says what is needed"}, 422)

    @app.exception_handler(AppError)
    async def _not_possible(request: Request, error: AppError) -> Response:
        if isinstance(error, TrailError):
            raise error  # a fault of the node: the guard answers
        # 409 where somebody else has decided first
        status = 409 if isinstance(error, DecidedError) else 422
        return JSONResponse({"detail": without_folders(str(error), node.folder)}, status)

    _add_health(app, node)
    _add_pages(app, node)
    _add_studies(app, node, config)
    _add_results(app, node)
    _add_reviews(app, node)
    _add_decisions(app, node)
    _add_repairs(app, node)
    _add_models(app, node)
    return HttpServer(app, config)


def _add_health(app: FastAPI, node: Node) -> None:
    # Both in the event loop: the threads for other routes may all be at work at uploads.
    @app.get("/health", summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Everything that a study needs works; otherwise 503 and the parts that fail")
    async def ready() -> Response:
        failing, locked_s = node.health.failing(), node.health.database_locked_s
        if not failing:
            return JSONResponse({"ready": True})
        busy = {"database": f"busy: another program has kept it locked for {locked_s:.0f} s"} if locked_s else {}
        return JSONResponse({"ready": False, "failing": failing, **busy}, 503)

    @app.get(
        "/metrics", summary="Metrics for Prometheus", dependencies=[Depends(access.needs("metrics", "read", "admin"))]
    )
    def metrics() -> Response:
        return Response(exposition(node), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI, node: Node) -> None:
    hints = Hints(node.store.folder, node.config.find_by if node.config.show_identity else ())
    no_hints = Hints(node.store.folder, ())

    def viewer(holder: Holder) -> Viewer:
        """Hints are identity: reviewers see them, and holders who only read or administer do not."""
        return Viewer(hints if holder.may("reviewer") else no_hints, holder)

    @app.get("/", summary="What the node is doing", response_class=HTMLResponse)
    def status(
        holder: access.Onlooker,
        still: Annotated[bool, Query(description="the page does not load itself again")] = False,
    ) -> str:
        return status_page(node, viewer(holder), still=still)

    @app.get("/find", summary="A page to find a study", response_class=HTMLResponse)
    def find_form(holder: access.Onlooker) -> str:
        return find_page(node, None, viewer(holder))

    @app.post(
        "/find",
        summary="Studies by a part of their UID; for reviewers by accession number",
        response_class=HTMLResponse,
    )
    def find(holder: access.Onlooker, text: Annotated[str, Form(max_length=64)]) -> str:
        # Who searched, and not for what: the text may be an accession number (decision 0033).
        node.audit.write("searched", who=holder.name)
        return find_page(node, text, viewer(holder))


def _add_studies(app: FastAPI, node: Node, config: HttpConfig) -> None:
    @app.post(
        "/studies",
        status_code=202,
        summary="A zip of DICOM objects, one object, or a NIfTI image for a rule",
        openapi_extra=_UPLOAD,
    )
    async def submit(
        request: Request,
        holder: access.Submitter,
        rule: Annotated[str, Query(description="for a NIfTI image: the rule whose bundle segments it")] = "",
    ) -> dict[str, Any]:
        # Asked before the body is read: the upload itself needs room on this disk.
        if (full := node.why_full()) != "":
            raise HTTPException(507, full)
        with scratch_file(node.folder) as path:
            await receive_file(request, path)
            return await run_in_threadpool(submitted, path, rule, holder.name)

    def submitted(path: Path, rule: str, person: str) -> dict[str, Any]:
        upload = _take_upload(node, path, rule, config)
        if not upload.instances:
            raise HTTPException(422, upload.refused[0] if upload.refused else "the archive is empty")
        answer = {"studies": upload.instances, "refused": upload.refused}
        # The objects are stored, whatever becomes of the line.
        if not node.audit.write_or_keep("submitted", who=person, studies=sorted(upload.instances)):
            answer["fault"] = f"all of studies is stored; {TRAIL_FAULT}; tell an administrator"
        return answer

    @app.get("/studies/{study}", summary="The jobs and results of a study")
    def study(study: str, holder: access.Onlooker) -> dict[str, Any]:
        _check_uid(study)
        jobs = node.queue.jobs_of(study)
        if not jobs and study not in node.arrivals:
            raise HTTPException(404, "no such study")
        return {
            "study": study,
            "arriving": study in node.arrivals,
            "versions": [
                {**asdict(job), "results": [_facts(node, result, holder) for result in node.queue.results_of(job.id)]}
                for job in jobs
            ],
        }


def _take_upload(node: Node, path: Path, rule: str, config: HttpConfig) -> Upload:
    """Puts the contents of an upload where C-STORE puts instances."""
    kind, most_member = kind_of(path), node.config.instance_gb * 1e9
    if kind == "zip":
        return take_zip(path, node.store, config.most_upload_gb * 4e9, most_member)
    if kind == "dicom":
        return take_dicom(path, node.store, most_member)
    if node.site.rule(rule) is None:
        names = ", ".join(known.name for known in node.site.rules)
        raise InputRefusedError(f"rule is {rule!r}; for a NIfTI image one of {names} is needed; add ?rule=NAME")
    study, is_new = take_nifti(path, node.store, rule)
    if is_new:
        node.arrivals.add(study, 1)
    return Upload(Counter({study: 1}))


def _add_results(app: FastAPI, node: Node) -> None:
    @app.get("/results/{number}", summary="A result: its state, its assessment by the bundle, its files")
    def result(number: Number, holder: access.Onlooker) -> dict[str, Any]:
        return _facts(node, _result(node, number), holder)

    @app.get("/results/{number}/files/{name:path}", summary="A file of a result", response_class=FileResponse)
    def file(number: Number, name: str, holder: access.Reader) -> FileResponse:
        result = _result(node, number)
        if not access.may_open(holder, result):
            raise HTTPException(
                403, f"the result is {result.state}; only the role reviewer opens a result that is not released"
            )
        path = _files(node, result).get(name)  # only looked up: a name may be too long for the system, or hold a NUL
        if path is None:
            raise HTTPException(404, "no such file")
        # Before the file is sent: what cannot be recorded is not read.
        node.audit.write("read", who=holder.name, result=number, file=path.name)
        return FileResponse(path, filename=path.name)

    @app.post("/results/{number}/release", summary="A result that was held back is delivered")
    def release_result(
        number: Number,
        holder: access.Decider,
        reason: Reason,
        confirm_rejected: Annotated[
            StrictBool, Body(embed=True, description="needed for a result that the quality gate rejected")
        ] = False,
    ) -> dict[str, Any]:
        _result(node, number)
        release(node, number, holder.name, reason, confirmed=confirm_rejected)
        return _facts(node, _result(node, number), holder)

    @app.post("/results/{number}/refuse", summary="A result that was held back is never delivered")
    def refuse_result(number: Number, holder: access.Decider, reason: Reason) -> dict[str, Any]:
        _result(node, number)
        refuse(node, number, holder.name, reason)
        return _facts(node, _result(node, number), holder)


def _add_reviews(app: FastAPI, node: Node) -> None:
    pages = ReviewPages(node)

    @app.get(
        "/results/{number}/review",
        summary="The page on which a result is reviewed; names the patient. A browser gets 202 and waits while it is made",
    )
    def page(number: Number, request: Request, holder: access.Reviewer) -> Response:
        result = _result(node, number)
        try:
            path = pages.make(result).result(SOON_S if _is_browser(request) else _LONGEST_PAGE_S)
        except TimeoutError:
            return HTMLResponse(waiting_page(node, number, pages.seconds(result)), 202, {"Retry-After": "2"})
        node.audit.write("reviewed", who=holder.name, study=result.study, result=number)
        return FileResponse(path, media_type="text/html", headers=_PAGE_POLICY)

    @app.get("/results/{number}/review.pdf", summary="The same as a PDF; names the patient")
    def pdf(number: Number, holder: access.Reviewer) -> FileResponse:
        result = _result(node, number)
        path = pages.make(result).result(_LONGEST_PAGE_S).with_name("review.pdf")
        if not path.is_file():
            raise HTTPException(404, "this review has no PDF")
        node.audit.write("read", who=holder.name, study=result.study, result=number, file=path.name)
        return FileResponse(
            path, media_type="application/pdf", headers=_PAGE_POLICY, filename=f"result-{number}.pdf",
            content_disposition_type="inline",
        )  # fmt: skip


def _add_decisions(app: FastAPI, node: Node) -> None:
    @app.get("/results/{number}/verdict", include_in_schema=False)  # the name in earlier versions
    @app.get(
        "/results/{number}/decision",
        summary="The holder of the token, whether they may decide, and the decision, if there is one",
    )
    def decision_so_far(number: Number, holder: access.Reviewer) -> dict[str, Any]:
        stands = standing(node, _result(node, number))
        return {"who": holder.name, **stands, "open": stands["open"] and holder.decides_as("reviewer")}

    @app.post("/results/{number}/verdict", include_in_schema=False)
    @app.post(
        "/results/{number}/decision",
        summary="What a reviewer decided: JSON of a review page, or a form with the mask too",
        openapi_extra=_DECIDED,
    )
    async def decision(number: Number, request: Request, holder: access.Decider) -> dict[str, Any]:
        result = _result(node, number)
        if is_json(request):
            return await run_in_threadpool(_decide, node, result, await request.body(), holder.name)
        if not is_form(request):
            raise HTTPException(415, "JSON of a review page is needed, or a form with fields decision and mask")
        # Two files: some clients send the decision as a file too, for instance `curl -F decision=@decision.json`.
        async with opened_form(request, max_files=2, max_fields=4) as form:
            field, mask = form.get("decision", form.get("verdict")), form.get("mask")
            if field is None or mask is None or isinstance(mask, str):
                raise HTTPException(422, "a form with fields decision (JSON) and mask (a file) is needed")
            text = field if isinstance(field, str) else await field.read(MOST_TEXT_BYTES)
            with scratch_file(node.folder, mask_ending(mask)) as path:
                await run_in_threadpool(copy_upload, mask.file, path)
                return await run_in_threadpool(_decide, node, result, text, holder.name, path)


def _decide(node: Node, result: Result, text: str | bytes, reviewer: str, mask: Path | None = None) -> dict[str, Any]:
    """Applies the decision in a JSON text and gives its record."""
    try:
        decision = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "the decision is not JSON, or is nested too deeply") from error
    if not isinstance(decision, dict):
        raise HTTPException(422, "the decision is not a JSON object")
    return decide(node, result, decision, reviewer, mask)


def _add_repairs(app: FastAPI, node: Node) -> None:
    @app.post("/studies/{study}/reprocess", status_code=202, summary="A study is processed again, by the present rules")
    def reprocess(study: str, request: Request, holder: access.Admin) -> Response:
        _check_uid(study)
        if not node.reprocess(study, holder.name):
            raise HTTPException(404, "no such study is complete; only a complete study can be processed again")
        return _json_or_status_page(request, {"study": study}, 202)

    @app.post("/jobs/{number}/retry", summary="The job of a dead letter is tried again")
    def retry_job(number: Number, request: Request, holder: access.Admin) -> Response:
        return _retry(request, node, "job", number, holder.name)

    @app.post("/deliveries/{number}/retry", summary="A dead delivery is tried again")
    def retry_delivery(number: Number, request: Request, holder: access.Admin) -> Response:
        return _retry(request, node, "delivery", number, holder.name)


def _add_models(app: FastAPI, node: Node) -> None:
    @app.get("/rules/drift", summary="Whether anything has changed since the references were frozen, for each rule")
    def drift(holder: access.Watcher) -> list[dict[str, Any]]:
        return drift_of(node)

    @app.post("/rules/{rule}/reference", summary="The first accepted results become what later ones are held against")
    def reference(
        rule: str,
        holder: access.Approver,
        results: Annotated[
            int, Body(embed=True, ge=1, le=100_000, description="how many of the first accepted results")
        ] = 60,
    ) -> dict[str, Any]:
        return freeze_reference(node, rule, results, holder.name)

    @app.get("/rules/challengers", summary="What is tried beside the champion of each rule, and what was found of it")
    def challengers(holder: access.Watcher) -> list[dict[str, Any]]:
        return node.challengers.state()

    @app.post("/models", summary="The registry is asked again; studies to come get the models that it names")
    def models(holder: access.Approver) -> dict[str, Any]:
        return node.challengers.ask_registry(holder.name)

    @app.post(
        "/rules/{rule}/canary", summary="The challenger's results go out for a share of the patients; 0: for none"
    )
    def canary(
        rule: str,
        holder: access.Approver,
        share: Annotated[float, Body(ge=0, le=1)],
        reason: Annotated[str, Body(max_length=500), AfterValidator(_printable)] = "",
    ) -> dict[str, Any]:
        return asdict(node.in_loop(lambda: node.challengers.set_share(rule, share, holder.name, reason)))

    @app.post("/rules/{rule}/rollback", summary="Ends the challenger: from the answer on no result of it is sent")
    def rollback(rule: str, holder: access.Stopper, reason: Reason) -> dict[str, Any]:
        return asdict(node.in_loop(lambda: node.challengers.roll_back(rule, reason, holder.name)))

    @app.post("/maintenance", summary="Alerts that maintenance explains are not sent for so long; 0 ends it")
    def maintenance(
        holder: access.Admin, minutes: Annotated[float, Body(ge=0, le=7 * 24 * 60)], reason: Reason
    ) -> dict[str, str]:
        until = declare_maintenance(node.folder, minutes).isoformat(timespec="seconds")
        node.audit.write("maintenance", until=until, who=holder.name, reason=reason)
        return {"until": until}


def _retry(request: Request, node: Node, kind: Literal["job", "delivery"], number: int, person: str) -> Response:
    if not node.retry(kind, number, person):
        raise HTTPException(404, f"no {kind} {number} is a dead letter; only dead letters are tried again")
    return _json_or_status_page(request, {kind: number})


def _is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def _json_or_status_page(request: Request, content: dict[str, Any], status: int = 200) -> Response:
    """What was done, as JSON; a person who pressed a button of the status page is led back to that page."""
    # 303 See Other (RFC 9110, 15.4.4): the browser goes on with GET, so a reload does not press the button again.
    return RedirectResponse("/", 303) if _is_browser(request) else JSONResponse(content, status)


def _result(node: Node, number: int) -> Result:
    result = node.queue.result(number)
    if result is None:
        raise HTTPException(404, "no such result")
    return result


def _check_uid(study: str) -> None:
    if not is_uid(study):
        raise HTTPException(404, "no such study; a StudyInstanceUID is needed")


def _facts(node: Node, result: Result, holder: Holder) -> dict[str, Any]:
    """The facts of a result; "files" and "document" are empty for a holder who may not open the result."""
    files = _files(node, result) if access.may_open(holder, result) else {}
    documents = (json_of(path) for name, path in files.items() if name.endswith("_result.json"))
    return {
        **{key: value for key, value in asdict(result).items() if key != "folder"},
        "deliveries": [asdict(delivery) for delivery in node.queue.deliveries_of(result.id)],
        "files": list(files),
        "document": next(documents, None),
    }


def _files(node: Node, result: Result) -> dict[str, Path]:
    """The files of a result by their names below its folder; empty for a result without a folder."""
    folder = node.result_folder(result)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if result.folder else []
    return {str(path.relative_to(folder)): path for path in files}
