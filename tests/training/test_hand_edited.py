"""Mistakes of people who edit a config by hand: one sentence with file, id and the nearest name, before a folder is made."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_unet_app.cli import main
from monai_unet_app.shipped import shipped

TRAIN = {
    "a tab": ("loss:\n  _target_", "loss:\n\t_target_", "train.yaml cannot be read, line 49: .*tabs"),
    "a class": ("_target_: DiceCELoss", "_target_: DiceCELos", "train.yaml: `loss` has the `_target_` DiceCELos.*DiceCELoss?"),
    "a class of a package": ("torch.optim.AdamW", "torch.optim.AdamV", "`optimizer` has .*torch.optim.AdamV.* mean AdamW?"),
    "a package": ("torch.optim.AdamW", "torsh.optim.AdamW", "`optimizer` has the `_target_` torsh.optim.AdamW"),
    "an argument": ("weight_decay: 0.05", "weight_decai: 0.05", "`optimizer` gives .* weight_decai.* mean weight_decay?"),
    "an argument less": ('  params: "$@network.parameters()"\n', "", "`optimizer` gives torch.optim.AdamW no argument params"),
    "an id": ('lr: "@learning_rate"', 'lr: "@learningrate"', "`optimizer::lr` refers to @learningrate.* mean learning_rate?"),
    "a part of an id": ("@train::loader)", "@train::loder)", "refers to @train::loder.* mean train::loader?"),
    "a key": ("learning_rate: 0.002", "learning_rate: 0.002\nlearning_rat: 0.001", "`learning_rat` is used nowhere.*rate?"),
    "a key instead": ("learning_rate: 0.002", "learning_rat: 0.001", "`learning_rat` is used nowhere.*learning_rate?"),
    "a key twice": ("epochs: 64", "epochs: 64\nepochs: 32", "train.yaml cannot be read, line [0-9]+: epochs stands here again"),
    "no Python": ('"$len(@train::loader)"', '"$len(@train::loader"', "`train::trainer::epoch_length` is no Python expression"),
    "a value": ("weight_decay: 0.05", "weight_decay: -1", "train.yaml does not give `run`: ValueError: .*weight_decay.*-1"),
}  # fmt: skip
INFERENCE = {
    "two numbers": ("spacing_mm: [1.0, 1.0, 1.0]", "spacing_mm: [1.0, 1.0]", "three numbers are needed.*`spacing_mm`"),
    "a transform": ("_target_: Spacingd", "_target_: Spacngd", "`deterministic::3` has .* Spacngd.* mean Spacingd?"),
    "a decimal comma": ("overlap: 0.5", "overlap: 0,5", "inferer of inference.yaml cannot be used.*'0,5'"),
    "an id": ('pixdim: "@spacing_mm"', 'pixdim: "@spacing_m"', "inference.yaml: .*refers to @spacing_m,.* mean spacing_mm?"),
}  # fmt: skip
EDITS = [
    (name, file, *edit) for file, edits in (("train", TRAIN), ("inference", INFERENCE)) for name, edit in edits.items()
]


@pytest.mark.parametrize(("name", "file", "old", "new", "said"), EDITS, ids=[f"{edit[1]} {edit[0]}" for edit in EDITS])
def test_a_mistake_in_a_config_is_one_sentence_before_a_folder_is_made(
    name: str, file: str, old: str, new: str, said: str, tiny_bundle: Callable[[str], Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = tiny_bundle("hippocampus_mri_unet3d")
    config = root / f"configs/{file}.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    output = tmp_path / "trained"
    words = [
        "train",
        "--bundle",
        root,
        "--data",
        shipped("examples") / "msd_hippocampus",
        "--output",
        output,
        "--epochs",
        1,
    ]
    assert main([str(word) for word in words]) == 1
    answer = capsys.readouterr()
    line = " ".join(answer.err.split())
    assert re.search(said, line), line
    assert "Traceback" not in line
    assert "terminating" not in line
    if name != "a value":
        assert not output.exists()
        assert len(answer.err.splitlines()) <= 4, answer.err
