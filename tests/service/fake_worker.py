"""A worker without torch: "segments" a study by writing one object whose content is a function of the study's instances.

    python -m fake_worker SITE.toml

What it does is told by the patient's comments of an instance: "crash" dies, "hang" sleeps, "eat" takes memory, "nothing" finds
nothing to segment, "refuse" refuses the series with a notice, "review" is held back; anything else is delivered.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from monai_unet_app.service.children import Message, serve
from monai_unet_app.service.site import Site, read_site
from monai_unet_app.service.work import digest_of


def segment(site: Site, message: Message) -> Message:
    """The answer to a task, as that of `service.work`."""
    begin = time.perf_counter()
    files = sorted(Path(message["study"]).rglob("*.dcm"))
    headers = [dcmread(path) for path in files]
    wish = {str(one.get("PatientComments") or "") for one in headers}
    _misbehave(wish)
    rule = site.rules[0]
    output = Path(message["output"])
    if "nothing" in wish:
        return {"results": [_result(rule.name, headers[0], "", "not processed", "")], "seconds": 0.0}
    folder = output / f"{rule.name}_one"
    (folder / "binary").mkdir(parents=True)
    _write(headers, folder / "binary" / "one_sc.dcm")
    state = "held" if "review" in wish else "not processed" if "refuse" in wish else "sending"
    found = _result(rule.name, headers[0], f"{output.name}/{folder.name}", state, digest_of(folder))
    return {"results": [found], "seconds": time.perf_counter() - begin}


def _misbehave(wish: set[str]) -> None:
    if "crash" in wish:
        os.kill(os.getpid(), 9)
    if "hang" in wish:
        time.sleep(3600)
    if "eat" in wish:
        eaten = []
        while True:
            eaten.append(b"x" * 10_000_000)
            time.sleep(0.01)


def _result(rule: str, header: Dataset, folder: str, state: str, digest: str) -> Message:
    return {
        "rule": rule,
        "series": str(header.SeriesInstanceUID),
        "folder": folder,
        "state": state,
        "verdict": "review" if state == "held" else "",
        "reason": "",
        "digest": digest,
    }


def _write(headers: list[Dataset], path: Path) -> None:
    uids = sorted(str(one.SOPInstanceUID) for one in headers)
    number = int(hashlib.sha256("".join(uids).encode()).hexdigest()[:30], 16)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, f"2.25.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = headers[0].StudyInstanceUID, f"2.25.{number + 1}"
    made.PatientName, made.PatientID = headers[0].PatientName, headers[0].PatientID
    made.ImageComments = f"{len(uids)} instances"
    made.Rows = made.Columns = 1
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", b"\0\0"
    made.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    read = read_site(Path(sys.argv[1]))
    serve(lambda: lambda message: segment(read, message))
