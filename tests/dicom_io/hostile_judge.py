"""A process of its own in which broken files are read, and what must not happen there.

Run as a program this file is that process: it takes one job a line (JSON) and answers each with one line. It may take
no more than MEMORY_BYTES above what its imports take, so that a huge allocation shows, and it can reach no network.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 << 30
PATIENCE_S = 60.0
TRACES_OF_IDENTITY = ("canary", "hidden", "17770203")
OUT_OF_MEMORY = ("MemoryError", "nable to allocate", "bad_alloc")
MESSAGE_CHARACTERS = range(20, 2500)


@dataclass(frozen=True)
class Answer:
    """What became of one job.

    Attributes:
        outcome: "read"; "refused" (a DicomIoError); "leak" (another exception); "hang"; "crash" (the process died).
        kind: Name of the exception's class.
        message: Its text.
        told: What was logged, warned or printed meanwhile.
        where: The innermost lines of a leak's traceback.
        faults: What else was wrong: connections, left files, memory, time.
        seconds: Wall time.
        processor_s: Processor time of the process.
    """

    outcome: str
    kind: str = ""
    message: str = ""
    told: str = ""
    where: str = ""
    faults: tuple[str, ...] = ()
    seconds: float = 0.0
    processor_s: float = 0.0

    @property
    def complaints(self) -> list[str]:
        """Everything that must not be; none for a job that went as it should."""
        found = list(self.faults)
        if self.outcome not in ("read", "refused"):
            found.append(f"{self.outcome}: {self.kind}: {self.message[:300]} {self.where}")
        if not self.message.isprintable():
            found.append(f"not one line of print: {self.message[:300]!r}")
        if self.outcome == "refused" and len(self.message) not in MESSAGE_CHARACTERS:
            found.append(f"a message of {len(self.message)} characters: {self.message[:200]!r}")
        for text in (self.message, self.told):
            found += [f"identity is told: {text[:300]!r}" for trace in TRACES_OF_IDENTITY if trace in text.lower()][:1]
        return found


@dataclass
class Judge:
    """Reads in a process of its own; in a new one after one that hung or died.

    Attributes:
        folder: Of its temporary files.
        memory_bytes: What a job may take.
        patience_s: How long it may last.
        reads: False for a process that imports no reader and only misbehaves.
    """

    folder: Path
    memory_bytes: int = MEMORY_BYTES
    patience_s: float = PATIENCE_S
    reads: bool = True
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def __call__(self, reader: str, path: Path | str, **more: Any) -> Answer:
        """Lets the function of that name in `_readers` read `path`, with its further arguments."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"reader": reader, "path": os.fsdecode(path), **more}) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self.patience_s)
        line = process.stdout.readline() if ready else ""
        if line:
            told = json.loads(line)
            return Answer(**told | {"faults": tuple(told["faults"])})
        code = self.close(kill=not ready)
        return Answer("crash", message=f"exit code {code}") if ready else Answer("hang", seconds=self.patience_s)

    def _start(self) -> subprocess.Popen[str]:
        own = self.folder / "temporary"
        own.mkdir(exist_ok=True)
        with (self.folder / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(self.memory_bytes), str(own), *(["readers"] * self.reads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                text=True, env=os.environ | {"TMPDIR": str(own)}, cwd=own,
            )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self._process

    def close(self, *, kill: bool = False) -> int:
        """Ends the process; its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        if kill:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait(PATIENCE_S)
        process.stdout.close()
        return code


# --- inside of the process


def _readers() -> dict[str, Callable[..., object]]:
    from dicom_io import read_sr
    from dicom_io.coding import load_segments
    from dicom_io.deidentify import deidentify, files_of
    from dicom_io.parametric import read_parametric_map
    from dicom_io.pdf import read_pdf
    from dicom_io.read import ReadOptions, examine, read_series
    from dicom_io.reading.series import find_series, scan_files
    from dicom_io.rtstruct import read_rtstruct
    from dicom_io.seg import read_seg

    references: dict[str, Any] = {}

    def reference(folder: str) -> Any:
        if folder not in references:
            references[folder] = read_series(Path(folder))
        return references[folder]

    def without_identity(path: Path, output: str, options: Sequence[str] = ()) -> object:
        return deidentify(files_of([path], Path(output)), Path(output), bytes(range(32)), options=options)

    return {
        "read_series": lambda path, **options: read_series(path, **options),
        "examine": lambda path: examine(path, ReadOptions(resample_gaps=True)),
        "find_series": find_series,
        "scan_files": lambda path: scan_files([path]),
        "read_seg": lambda path, of: read_seg(path, reference(of)),
        "read_rtstruct": lambda path, of: read_rtstruct(path, reference(of)),
        "read_parametric_map": lambda path, of: read_parametric_map(path, reference(of)),
        "read_pdf": read_pdf,
        "read_sr": read_sr,
        "load_segments": load_segments,
        "deidentify": without_identity,
        "read_series at a tenth": _at_a_tenth(read_series),
        "scan_files at a tenth": _at_a_tenth(lambda path: scan_files([path])),
        "write_results": _write_results,
    }


def _at_a_tenth(reader: Callable[[Path], object]) -> Callable[[Path], object]:
    """The reader where a file may have a tenth of the items and pieces."""
    from unittest.mock import patch

    from dicom_io.reading import bounded

    def read(path: Path) -> object:
        with (
            patch.object(bounded.BoundedFile, "items_left", bounded.MAX_ITEMS // 10),
            patch.object(bounded, "MAX_PIECES", bounded.MAX_PIECES // 10),
        ):
            return reader(path)

    return read


def _write_results(path: Path, output: str) -> None:
    """Writes a result of every kind that a series can have; of those that are refused, the reasons are the refusal."""
    from datetime import UTC, datetime

    import numpy as np
    from pydicom.sr.codedict import codes

    from dicom_io.capture import write_captures, write_notice
    from dicom_io.coding import Segment
    from dicom_io.errors import DicomIoError
    from dicom_io.objects.identity import ResultInfo
    from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map
    from dicom_io.pdf import write_pdf
    from dicom_io.presentation import write_gsps
    from dicom_io.read import read_series
    from dicom_io.rejection import Rejection, write_rejection_note
    from dicom_io.rtstruct import write_rtstruct
    from dicom_io.seg import write_seg
    from dicom_io.sr import write_sr

    source, folder = read_series(path), Path(output)
    array = np.zeros(source.shape[:3], np.uint8)
    array[2:6, 3:8] = 1
    labels, values = source.with_array(array), source.with_array(array / np.float32(2))
    result = ResultInfo((Segment(1, "Part", codes.SCT.AnatomicalStructure, codes.SCT.Liver),), "network", "1", "0" * 64)
    seg, rejection = folder / "seg.dcm", Rejection("Doe^Jane", "Clinic", datetime(2026, 1, 2, tzinfo=UTC))
    writers: list[Callable[[], object]] = [
        lambda: write_seg(labels, source, seg, result),
        lambda: write_sr(labels, source, folder / "sr.dcm", result, seg=seg),
        lambda: write_rtstruct(labels, source, folder / "rtstruct.dcm", result),
        lambda: write_gsps(labels, source, folder / "gsps.dcm", result),
        lambda: write_captures(labels, source, folder / "captures", result),
        lambda: write_parametric_map(values, source, folder / "map.dcm", result, MapMeaning(PROBABILITY, NO_UNIT, "P")),
        lambda: write_pdf(b"%PDF-1.4\n%%EOF", source, folder / "report.pdf.dcm", result, title="Report"),
        lambda: write_notice([path], "because", folder / "notice.dcm", result),
        lambda: write_rejection_note([path], folder / "note.dcm", rejection),
    ]
    reasons = []
    for write in writers:
        try:
            write()
        except DicomIoError as refusal:
            reasons.append(str(refusal))
    if reasons:
        raise DicomIoError("; ".join(dict.fromkeys(reasons))[:2000])


def _misbehave(_: Path, how: str) -> None:
    """What the judge must see, to be one."""
    from dicom_io.errors import DicomIoError

    if how == "leak":
        raise KeyError("a key")
    if how == "hang":
        time.sleep(60)
    if how == "crash":
        os.abort()
    if how == "memory":
        bytearray(3 << 30)
    if how == "connect":
        socket.create_connection(("127.0.0.1", 9))
    if how == "leave":
        os.close(tempfile.mkstemp()[0])
    if how == "log":
        logging.getLogger("pydicom").warning("Canary^Hidden")
    raise DicomIoError({"lines": "two\nlines of text for a user", "name": "it is Canary^Hidden who"}.get(how, "short"))


def _answer(call: Callable[..., object], job: dict[str, Any], connections: list[str], own: Path) -> Answer:
    from dicom_io.errors import DicomIoError

    told, error, outcome = io.StringIO(), None, "read"
    handler = logging.StreamHandler(told)
    logging.getLogger().addHandler(handler)
    path, before = Path(job.pop("path")), set(os.listdir(own))
    start, processor = time.monotonic(), time.process_time()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(told):
        warnings.simplefilter("always")
        try:
            call(path, **job)
        except DicomIoError as refusal:
            outcome, error = "refused", refusal
        except BaseException as leak:
            outcome, error = "leak", leak
    seconds, processor_s = time.monotonic() - start, time.process_time() - processor
    logging.getLogger().removeHandler(handler)
    told.writelines(f"{warning.message}\n" for warning in warned)
    faults = [f"connects to {target}" for target in connections]
    faults += [f"leaves {name}" for name in sorted(set(os.listdir(own)) - before)]
    faults += ["takes too much memory"] if _ran_out_of_memory(error) else []
    connections.clear()
    where = _innermost(error) if outcome == "leak" and error is not None else ""
    text = told.getvalue()[:20000]
    return Answer(outcome, type(error).__name__, str(error or ""), text, where, tuple(faults), seconds, processor_s)


def _innermost(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames[::-1][:5])


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """True where a MemoryError stands anywhere behind an error, or is told by a library in its text."""
    while error is not None:
        if isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _virtual_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _serve(memory_bytes: int, own: Path, *, reads: bool) -> None:
    readers, connections = {"misbehave": _misbehave} | (_readers() if reads else {}), []
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer

    def connect(_: object, target: object, *__: object) -> None:
        connections.append(repr(target))
        raise OSError("no network here")

    socket.socket.connect = connect  # type: ignore[method-assign,assignment]
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + memory_bytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        answer = _answer(readers[job.pop("reader")], job, connections, own)
        print(json.dumps(vars(answer)), file=answers, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), reads="readers" in sys.argv[3:])
