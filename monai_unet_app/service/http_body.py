"""The bodies of requests: files and forms, written to a temporary file of the node before they are looked at."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

_MASKS = (".nii.gz", ".nii", ".dcm", ".nrrd", ".mha", ".png")


def is_form(request: Request) -> bool:
    """Whether the body is declared as a form with files."""
    return request.headers.get("Content-Type", "").startswith("multipart/form-data")


async def receive_file(request: Request, path: Path) -> None:
    """Writes the body of a request, or the first file of a form, to a file. Raises HTTPException 400 or 422."""
    if is_form(request):
        async with opened_form(request, max_files=1, max_fields=8) as form:
            upload = next((part for part in form.values() if not isinstance(part, str)), None)
            if upload is None:
                raise HTTPException(422, "the form holds no file; a file is needed")
            await run_in_threadpool(copy_upload, upload.file, path)
        return
    with path.open("wb") as stream:
        async for chunk in request.stream():
            stream.write(chunk)


@asynccontextmanager
async def opened_form(request: Request, *, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """The fields of a form. Raises HTTPException 400 for a broken form."""
    try:
        form = await request.form(max_files=max_files, max_fields=max_fields)
    except (LookupError, ValueError) as error:  # an unknown character set, for instance
        raise HTTPException(400, "the form is broken; multipart/form-data is needed; send it again") from error
    try:
        yield form
    finally:
        await form.close()


def copy_upload(upload: IO[bytes], path: Path) -> None:
    """Writes the content of an upload to a file."""
    with path.open("wb") as stream:
        shutil.copyfileobj(upload, stream)


@contextmanager
def scratch_file(folder: Path, ending: str = ".part") -> Iterator[Path]:
    """An empty file below `folder`/uploads, which is deleted afterwards."""
    # Below the node's folder, which it empties at its start: an upload that a kill broke off does not stay.
    uploads = folder / "uploads"
    uploads.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=uploads, suffix=ending) as file:
        yield Path(file.name)


def mask_ending(mask: UploadFile) -> str:
    """The file ending by which readers recognise the format of a mask; ".dcm" if its name has no known ending."""
    return next((ending for ending in _MASKS if str(mask.filename).lower().endswith(ending)), ".dcm")
