"""A worker without torch: "segments" a study by writing one object whose content is a function of the study's instances.

    python -m fake_worker SITE.toml

What it does is told by the patient's comments of an instance, or by `descrip` of a NIfTI image: "crash" dies, "hang" sleeps,
"slow" sleeps for a while, "grind" computes for a while without letting any other thread run, "eat" takes memory, "nothing"
finds nothing to segment, "refuse" refuses with a notice, "drift" writes other bytes each time,
"review" and "reject" are that verdict of the quality gate; anything else is delivered. "cannot" refuses where the bundle is
a challenger's (its sha256 begins with c), "dies" dies there, and a shadow finds it worse where the wish is "worse".
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from monai_unet_app.service.child_processes import Message, end_with_parent, serve
from monai_unet_app.service.result_folder import digest_of
from monai_unet_app.service.rows import state_of
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.uploads import images_of


def segment(site: Site, message: Message) -> Message:
    """The answer to a task, as that of `service.work`."""
    begin = time.perf_counter()
    if "slots" in message:
        return _compared(site, message)
    output = Path(message["output"])
    for image in images_of(Path(message["study"])):
        return {"results": [_image_result(site, image, output)], "seconds": 0.0}
    files = sorted(Path(message["study"]).rglob("*.dcm"))
    headers = [dcmread(path) for path in files]
    wish = {str(one.get("PatientComments") or "") for one in headers}
    bundle = message.get("models", {}).get(site.rules[0].name, "")
    if bundle.startswith("c"):
        wish |= {"refuse"} if "cannot" in wish else {"crash"} if "dies" in wish else set()
    _misbehave(wish)
    told = max(int(one.get("ImagesInAcquisition") or 0) for one in headers)
    lacks = f"{told - len(headers)} of {told} images did not come" if told > len(headers) else ""
    if lacks and not message["waited"]:
        return {"incomplete": lacks}
    if lacks and not site.rules[0].allow_incomplete:
        wish.add("refuse")
    rule, series = site.rules[0], str(headers[0].SeriesInstanceUID)
    if "nothing" in wish:
        why = {"reason": "no series fits a rule"}
        return {"results": [_result(rule.name, series, "", "not processed", "") | why], "seconds": 0.0}
    folder = output / f"{rule.name}_one"
    shutil.rmtree(output, ignore_errors=True)
    (folder / "binary").mkdir(parents=True)
    more = f" {output.name}" if "drift" in wish else ""
    _write(headers, folder / "binary" / "one_sc.dcm", more + (f" by {bundle[:8]}" if bundle else ""))
    verdict = next((one for one in ("review", "reject") if one in wish), "")
    state = "not processed" if "refuse" in wish else state_of(verdict, hold_review=rule.hold_review, ungated=True)
    found = _result(rule.name, series, f"{output.name}/{folder.name}", state, digest_of(folder), verdict)
    found["reason"] = lacks or (f"the gate says {verdict}" if verdict else "cannot" if "cannot" in wish else "")
    if bundle:
        words = {"ManufacturerModelName": str(headers[0].get("ManufacturerModelName", ""))}
        found |= {"bundle": bundle, "observed": {"bundle": bundle, "words": words, "numbers": {}}}
    return {"results": [found], "seconds": time.perf_counter() - begin}


def _compared(site: Site, message: Message) -> Message:
    """What a shadow finds: the challenger is as good, or worse by the wish of the study."""
    headers = [dcmread(path) for path in sorted(Path(message["study"]).rglob("*.dcm"))]
    wish = {str(one.get("PatientComments") or "") for one in headers}
    _misbehave(wish & {"crash", "slow shadow", "brief shadow"})
    pair = {"fault": ["", ""], "verdict": ["accept", "accept"], "agreement": 0.9, "seconds": [1.0, 1.0]}
    dice = [0.9, 0.7] if "worse" in wish else [0.9, 0.9]
    return {
        "compared": {
            site.rules[0].name: {
                **pair,
                "dice": dice,
                "results": sorted(f"{rule}/{uid}" for rule, uid, _ in message["results"]),
            }
        }
    }


def _misbehave(wish: set[str]) -> None:
    if "crash" in wish:
        os.kill(os.getpid(), 9)
    if "hang" in wish:
        time.sleep(3600)
    if "brief shadow" in wish:
        time.sleep(0.3)
    if "slow" in wish or "slow shadow" in wish:
        time.sleep(5)
    if "grind" in wish:
        sum(range(400_000_000))  # C code that keeps the interpreter's lock
    if "eat" in wish:
        eaten = []
        while True:
            eaten.append(b"x" * 10_000_000)
            time.sleep(0.01)


def _image_result(site: Site, image: Path, output: Path) -> Message:
    """The result of a NIfTI image: a file of the same bytes."""
    content = image.read_bytes()
    header = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    wish = header[148:228].rstrip(b"\0").decode("ascii", "replace")  # `descrip` of NIfTI-1
    folder = output / image.parent.name
    folder.mkdir(parents=True)
    (folder / "one_seg.nii.gz").write_bytes(content)
    verdict = wish if wish in ("review", "reject") else ""
    rule = site.rules[0]
    state = state_of(verdict, hold_review=rule.hold_review, ungated=True)
    return _result(
        rule.name,
        "",
        f"{output.name}/{folder.name}",
        state,
        digest_of(folder),
        verdict,
    )


def _result(rule: str, series: str, folder: str, state: str, digest: str, verdict: str = "") -> Message:
    return {
        "rule": rule, "series": series, "folder": folder, "state": state, "verdict": verdict, "reason": "", "digest": digest,
    }  # fmt: skip


def _write(headers: list[Dataset], path: Path, more: str = "") -> None:
    uids = sorted(str(one.SOPInstanceUID) for one in headers)
    number = int(hashlib.sha256("".join([*uids, more.partition(" by ")[2]]).encode()).hexdigest()[:30], 16)
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, f"2.25.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = headers[0].StudyInstanceUID, f"2.25.{number + 1}"
    made.PatientName, made.PatientID = headers[0].PatientName, headers[0].PatientID
    made.ImageComments = f"{len(uids)} instances{more}"
    made.Rows = made.Columns = 1
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation, made.SamplesPerPixel = 7, 0, 1
    made.PhotometricInterpretation, made.PixelData = "MONOCHROME2", b"\0\0"
    made.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    if "--shadow" in sys.argv:
        end_with_parent()
    read = read_site(Path(sys.argv[1]))
    loaded = {rule.name: {"name": rule.bundle, "version": "0", "sha256": "0" * 64} for rule in read.rules}
    serve(lambda: (lambda message: segment(read, message), {"bundles": loaded}))
