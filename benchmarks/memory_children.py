"""What `memory.py` measures besides `monai-unet`, each as a process of its own, and the plot of its curve.

python benchmarks/memory_children.py NAME ARGUMENTS
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import GB

LIMITS_GB = (4, 8, 16)


def loop(bundle: str, image: str) -> int:
    """Prints the seconds of the sliding window and of the network inside it."""
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import ResultSettings
    from monai_unet_app.data.read import read_volume
    from monai_unet_app.inference.predict import predict_rows
    from monai_unet_app.pipeline import preprocess

    loaded, begun, calls, seconds = load_bundle(bundle), [0.0], [], 0.0
    tensor = preprocess(read_volume(image), loaded)["image"]
    loaded.network.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.perf_counter()))
    loaded.network.register_forward_hook(lambda *_: calls.append(time.perf_counter() - begun[0]))
    for _ in range(2):  # the first calls of torch take longer
        calls.clear()
        start = time.perf_counter()
        for _rows in predict_rows(tensor, loaded.engine(ResultSettings()), loaded.windows):
            pass
        seconds = time.perf_counter() - start
    told = {"calls": len(calls), "network_s": sum(calls), "loop_s": seconds}
    print(json.dumps({**told, "overhead": seconds / sum(calls) - 1}))
    return 0


def bundle_run(bundle: str, data: str, output: str) -> int:
    """`python -m monai.bundle run`, on the CPU."""
    words = {"bundle_root": bundle, "dataset_dir": data, "output_dir": output, "pattern": "*.nii"}
    flags = [part for name, value in words.items() for part in (f"--{name}", value)]
    config = ["--config_file", f"{bundle}/configs/inference.yaml", "--device", "$torch.device('cpu')"]
    return subprocess.run([sys.executable, "-m", "monai.bundle", "run", *config, *flags], check=False).returncode


def differences(theirs: str, mine: str) -> int:
    """Prints how many labels differ, and the largest difference of probabilities."""
    import nibabel
    import numpy as np

    def found(folder: str, name: str) -> Any:
        return np.squeeze(np.asarray(nibabel.load(next(Path(folder).glob(f"*_{name}.nii.gz"))).dataobj))

    labels = np.count_nonzero(found(theirs, "seg") != found(mine, "seg"))
    apart = np.abs(found(theirs, "prob").astype(np.float64) - found(mine, "prob")).max()
    print(json.dumps([int(labels), float(apart)]))
    return 0


def monai(side: str, bundle: str, image: str, output: str) -> int:
    """MONAI by itself from the file to a label map, without what it does not have: calibration and statements.

    "MONAI" is the bundle's `inference.yaml` as it is. "buffered" joins windows along one axis before they are added up, and
    inverts in float32. "labels first" also takes the label map back to the source grid, not the probabilities: these are lost.
    """
    import torch
    from monai.bundle import ConfigParser
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import AsDiscreted, Compose, Invertd, SaveImaged

    config = ConfigParser()
    config.read_config(f"{bundle}/configs/inference.yaml")
    config["device"] = "$torch.device('cpu')"
    if side != "MONAI":
        for step in config["deterministic"]:
            if step["_target_"] == "Spacingd":
                step["dtype"] = "$torch.float32"
    preprocessing, network = config.get_parsed_content("preprocessing"), config.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True))
    inferer = config.get_parsed_content("inferer")
    if side != "MONAI":
        inferer = SlidingWindowInferer(
            config["window"], 1, 0.5, "gaussian", sw_device="cpu", device="cpu", buffer_steps=2, buffer_dim=0
        )
    back = {"keys": "pred", "transform": preprocessing, "orig_keys": "image"}
    result = Compose(config.get_parsed_content("result"))
    if side == "MONAI labels first":
        result = Compose([AsDiscreted("pred", argmax=True), Invertd(**back, nearest_interp=True)])
    with torch.inference_mode():
        item = preprocessing({"image": image})
        item["pred"] = inferer(item["image"][None], network)[0]
        item = result(item)
    SaveImaged("pred", output_dir=output, output_dtype="uint8", separate_folder=False, print_log=False)(item)
    return 0


def nnunet(side: str, bundle: str, image: str, output: str) -> int:
    """nnU-Net's predictor with the bundle's network, window and intensities; results on the CPU, as its defaults resample."""
    import nibabel
    import numpy as np
    import torch
    from monai.bundle import ConfigParser
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    config = ConfigParser()
    config.read_config(f"{bundle}/configs/inference.yaml")
    labels = {name: number for number, name in enumerate(config["labels"])}
    resample: dict[str, Any] = {}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        resample[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resample[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None,
        }  # fmt: skip
    configuration = {
        "preprocessor_name": "DefaultPreprocessor", "patch_size": config["window"], "spacing": config["spacing_mm"][::-1],
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_size": 1,
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []}, **resample,
    }  # fmt: skip
    window = {"mean": -200.0, "std": 500.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
    plans = {
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d": configuration},
        "foreground_intensity_properties_per_channel": {"0": window},
        "label_manager": "LabelManager",
    }
    manager = PlansManager(plans)
    network = config.get_parsed_content("network_def")
    # Its sums of windows are float16, where the logits of this made-up network, up to 2,000, overflow. A power of two
    # changes no label.
    weights = {
        name: value / 64 if name.startswith("output_block") else value
        for name, value in torch.load(f"{bundle}/models/model.pt", weights_only=True).items()
    }
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    about = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii"}
    predictor.manual_initialization(network, manager, manager.get_configuration("3d"), [weights], about, "none", None)
    read = nibabel.load(image)
    spacing = [float(one) for one in read.header.get_zooms()][::-1]
    array = np.asarray(read.dataobj).T[None].astype(np.float32)
    found = predictor.predict_single_npy_array(
        array, {"spacing": spacing}, None, None, save_or_return_probabilities=side == "nnU-Net"
    )
    labels_found = found[0] if side == "nnU-Net" else found
    Path(output).mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels_found.T.astype(np.uint8), read.affine), f"{output}/image_nnunet.nii.gz")
    return 0


def plot(path: str) -> int:
    """Draws the table of `curve`, given as JSON."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    table = json.load(sys.stdin)
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for side in dict.fromkeys(row["side"] for row in table):
        rows = [row for row in table if row["side"] == side and row["code"] == 0]
        style = {"marker": "o", "linewidth": 2.5 if side == "ours" else 1.2, "label": side}
        memory.loglog([row["voxels"] for row in rows], [row["peak"] / GB for row in rows], **style)
        seconds.loglog([row["voxels"] for row in rows], [row["seconds"] for row in rows], **style)
    for limit in LIMITS_GB:
        memory.axhline(limit, color="grey", linewidth=0.7, linestyle=":")
        memory.annotate(f"{limit} GB", (memory.get_xlim()[0], limit), fontsize=8, color="grey")
    memory.set(xlabel="voxels of the image", ylabel="largest resident memory, GB", yticks=[1, 2, 4, 8, 16])
    seconds.set(
        xlabel="voxels of the image", ylabel="seconds, from the file to the label map", yticks=[10, 30, 100, 300]
    )
    for axes in (memory, seconds):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    seconds.legend(fontsize=8)
    figure.suptitle(f"{table[0]['classes']} classes; a side ends where it failed or was above the limit")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    return 0


CHILDREN: dict[str, Callable[..., int]] = {
    "loop": loop,
    "bundle_run": bundle_run,
    "differences": differences,
    "monai": monai,
    "nnunet": nnunet,
    "plot": plot,
}

if __name__ == "__main__":
    raise SystemExit(CHILDREN[sys.argv[1]](*sys.argv[2:]))
