"""A worker without torch that writes real objects: SEG and SR of two blocks, NIfTI and `result.json`, as `service.work` does.

    python -m real_worker SITE.toml

The patient's comments say what becomes of the result: "review" is held back, "reject" is rejected; anything else is delivered.
With "less" as their second word the mask has one voxel less, as after late images.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from phantoms import lopsided_labels
from pydicom import dcmread
from result_phantoms import RESULT
from review_cases import result_document

from dicom_io.read import read_series
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr
from monai_unet_app.results import write_nifti
from monai_unet_app.service.child_processes import Message, serve
from monai_unet_app.service.result_folder import digest_of, variants
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site

STATES = {"review": ("held", "review"), "reject": ("rejected", "reject")}


def segment(site: Site, message: Message) -> Message:
    """The answer to a task, as that of `service.work`."""
    rule, output = site.rules[0], Path(message["output"])
    volume = read_series(Path(message["study"]), accept_incomplete=rule.allow_incomplete)
    wish = str(dcmread(next(Path(message["study"]).rglob("*.dcm"))).get("PatientComments") or "").split()
    array = lopsided_labels()
    if "less" in wish:
        array.flat[array.ravel().nonzero()[0][0]] = 0
    labels = volume.with_array(array)
    folder = output / f"{rule.name}_one"
    for name, profile in variants(rule, site).items():
        place = folder / name
        place.mkdir(parents=True)
        write_seg(labels, volume, place / "case_seg.dcm", RESULT, encoding=profile.seg_encoding or "binary")
        write_sr(labels, volume, place / "case_sr.dcm", RESULT, seg=place / "case_seg.dcm")
        write_nifti(labels.array, volume, place / "case_seg.nii.gz")
        files = {"nifti": "case_seg.nii.gz", "seg": "case_seg.dcm", "sr": "case_sr.dcm"}
        (place / "case_result.json").write_text(json.dumps(result_document(volume, files)))
    state, verdict = STATES.get(wish[0] if wish else "", ("sending", "accept"))
    found = {
        "rule": rule.name, "series": volume.provenance.series_instance_uid, "folder": f"{output.name}/{folder.name}",
        "state": state, "verdict": verdict, "reason": "", "digest": digest_of(folder),
    }  # fmt: skip
    return {"results": [found], "seconds": 0.1}


if __name__ == "__main__":
    read = read_site(Path(sys.argv[1]))
    serve(lambda: (lambda message: segment(read, message), {}))
