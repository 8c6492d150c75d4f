"""nnU-Net's own command in the place of a network: its processes, threads and files, within limits and namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import pytest
from trained_by_nnunet import RESULTS

PEERS = RESULTS.parents[1] / "build/peers"  # where benchmarks keep nnU-Net
sys.path.append(str(PEERS))
pytest.importorskip("nnunetv2")

from monai_unet_app.data.read import read_volume  # noqa: E402
from monai_unet_app.external import Command, ExternalBundle, Surroundings, check_version, labels_of  # noqa: E402

SCRIPT = """set -e
mkdir in out
cp "$1" in/case_0000.nii.gz
{python} -c "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main; main()" \\
    -i in -o out -m {results} -f 0 -device cpu --disable_tta -npp 1 -nps 1
mv out/case.nii.gz "$2"
"""


def test_its_labels_come_back_through_the_supervisor(tmp_path: Path) -> None:
    results, installed = RESULTS / "plain3d", version("nnunetv2")
    script = tmp_path / "nnunet.sh"
    script.write_text(SCRIPT.format(python=sys.executable, results=results))
    (tmp_path / "nnunet/configs").mkdir(parents=True)
    told = "from importlib.metadata import version; print(version('nnunetv2'))"
    command = Command(("sh", str(script), "{image}", "{output}"), (sys.executable, "-c", told), seconds=300.0)
    metadata = {
        "version": "0.1.0",
        "task": "",
        "kind": "external",
        "program": {"name": "nnU-Net", "version": installed},
    }
    (tmp_path / "nnunet/configs/metadata.json").write_text(json.dumps(metadata))
    words = {
        name: getattr(command, name) for name in ("words", "version_words", "output", "seconds", "memory_gb", "disk_gb")
    }
    (tmp_path / "nnunet/configs/external.json").write_text(json.dumps({"schema_version": "1.0", **words}))
    bundle = ExternalBundle(tmp_path / "nnunet")
    more = {"PYTHONPATH": str(PEERS), "nnUNet_raw": ".", "nnUNet_preprocessed": ".", "nnUNet_results": "."}
    where = Surroundings(os.environ["PATH"], threads=1, environment=more)
    check_version(bundle, where, tmp_path)

    image = results / "images/test0_0000.nii.gz"
    (tmp_path / "alone").mkdir()
    alone = ["sh", str(script), str(image), "labels.nii.gz"]
    subprocess.run(alone, cwd=tmp_path / "alone", env={**os.environ, **more, "OMP_NUM_THREADS": "1"}, check=True)
    wanted = np.asarray(nibabel.load(tmp_path / "alone/labels.nii.gz").dataobj)
    assert wanted.any()
    (tmp_path / "place").mkdir()
    with labels_of(read_volume(image), bundle, where, tmp_path / "place") as request:
        found = nibabel.load(request.labels)
        placed = nibabel.apply_orientation(
            np.asarray(found.dataobj),
            nibabel.orientations.ornt_transform(
                nibabel.io_orientation(found.affine), nibabel.io_orientation(nibabel.load(image).affine)
            ),
        )
    assert np.array_equal(placed, wanted)
    assert not list((tmp_path / "place").iterdir())
