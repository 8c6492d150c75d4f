"""Networks by name: each takes its windows, joins its levels as its paper says, and takes only the values that it lists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import EXAMPLES
from shell import Run, shell
from small_data import plan_bundle, tilted_volumes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.inference.network_check import Demands, check_network
from monai_unet_app.planning import family
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.family import NetworkChoice, built, known, names, written, yaml_text
from monai_unet_app.planning.network import NetworkPlan, plan_network
from monai_unet_app.planning.speed import memory_beside
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training.transfer import find_donor

NAMES = (
    "attention_unet", "dynunet", "flexible_unet", "light_unet", "mednext", "multiscale_unet", "residual_unet", "segresnet",
    "swin_unetr", "unet", "unet_plus_plus", "unetr",
)  # fmt: skip
IMAGES = {
    "3d": ((35, 50, 35), (1.0, 1.0, 1.0)),
    "thick": ((96, 90, 20), (1.2, 1.2, 6.0)),
    "2d": ((96, 130), (1.0, 1.0)),
}
run = pytest.fixture(shell)
each = pytest.mark.parametrize("name", NAMES)


def plan_for(name: str, images: str = "3d", base: int = 16) -> NetworkPlan:
    return plan_network(*IMAGES[images], 2**18, base, known(name).divisor)


class _Undrawn(TorchFunctionMode):
    """New weights keep what the memory held: tests of shapes ask for none, and to draw them takes most of the time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in (Tensor.uniform_, Tensor.normal_) else function(*args, **(kwargs or {}))


def new(name: str, plan: NetworkPlan, channels: int = 1, **values: str) -> nn.Module:
    """The network for three labels, without values."""
    with _Undrawn():
        return built(written(NetworkChoice(name, values), plan, channels)[0], plan, 3).to("meta")


def test_the_family_is_whole() -> None:
    assert names() == NAMES


@each
def test_a_file_of_the_family_is_short_and_names_nothing_but_monai_and_torch(name: str) -> None:
    text = (family._FOLDER / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 40
    assert "monai_unet_app" not in text
    assert "dicom_io" not in text


@each
@pytest.mark.parametrize("images", IMAGES)
def test_a_network_takes_the_window_of_its_plan_and_gives_one_logit_a_label_and_voxel(name: str, images: str) -> None:
    plan = plan_for(name, images)
    block, layer = written(NetworkChoice(name), plan, channels=2)
    with _Undrawn():
        network = built(block, plan, 3).eval()
    check_network(network, Demands(2, plan.window, ("a", "b", "c"), layer), trained=False)
    if images != "thick":  # one axis is then halved less than others
        assert min(plan.window) >= 16
    assert all(size % divisor == 0 for size, divisor in zip(plan.window, plan.divisor, strict=True))


@each
def test_every_weight_of_a_network_learns(name: str) -> None:
    plan = plan_for(name, "2d")
    network = new(name, plan).train()
    answer = network(torch.zeros(2, 1, *plan.window, device="meta"))
    (answer[0] if isinstance(answer, list) else answer).mean().backward()
    still = {part for part, weight in network.named_parameters() if weight.grad is None}
    assert not {part for part in still if not part.endswith(tuple(LEFT_OUT.get(name, {"?"})))}


LEFT_OUT = {
    "flexible_unet": {"_bn1.bias", "_bn1.weight", "_conv_head.weight", "_fc.bias", "_fc.weight"},
    "unet_plus_plus": {f"final_conv_0_{n}.{part}" for n in (1, 2, 3) for part in ("weight", "bias")},
    "unetr": {"norm_cross_attn.weight", "norm_cross_attn.bias", "vit.norm.weight", "vit.norm.bias"},
}
"""Ends of names: the classifier of a pretrained encoder, norms that MONAI makes and leaves out, heads of deep supervision."""

# Place of the encoder's side in each join, and the modules that it comes from, the coarsest level first. SegResNet and MedNeXt
# add, all others put channels side by side.
LEVELS = (
    "model.1.submodule.1.submodule.1.submodule.0",
    "model.1.submodule.1.submodule.0",
    "model.1.submodule.0",
    "model.0",
)
JOINS: dict[str, tuple[int, Sequence[str]]] = {
    "attention_unet": (
        0,
        ("model.1.submodule.1.submodule.1.attention", "model.1.submodule.1.attention", "model.1.attention"),
    ),
    "dynunet": (1, ("downsamples.1", "downsamples.0", "input_block")),
    "flexible_unet": (0, ("encoder._blocks.4", "encoder._blocks.2", "encoder._blocks.1", "encoder._blocks.0")),
    "light_unet": (0, LEVELS),
    "mednext": (1, ("enc_stages.3.1", "enc_stages.2.1", "enc_stages.1.1", "enc_stages.0.1")),
    "multiscale_unet": (1, ("downsamples.1", "downsamples.0", "input_block")),
    "residual_unet": (0, LEVELS),
    "segresnet": (1, ("down_layers.2", "down_layers.1", "down_layers.0")),
    "swin_unetr": (1, ("encoder4", "encoder3", "encoder2", "encoder1")),
    "unet": (0, ("down_3", "down_2", "down_1", "conv_0")),
    "unetr": (1, ("encoder4", "encoder3", "encoder2", "encoder1")),
}


class _Joins(TorchFunctionMode):
    """Records which tensors are added or put side by side, each by the last module that gave it."""

    def __init__(self, network: nn.Module, *, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.origin: dict[int, tuple[str, Tensor]] = {}
        self.found: list[list[tuple[str, tuple[int, ...]]]] = []
        for name, module in network.named_modules():
            module.register_forward_hook(lambda module, inputs, output, name=name: self.see(name, output))

    def see(self, name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            self.origin.setdefault(id(output), (name, output))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        word = getattr(function, "__name__", "")
        parts = args[0] if word == "cat" else args if self.adds and word in ("add", "__add__") else ()
        if len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
            self.found.append([(self.origin.get(id(part), ("?",))[0], tuple(part.shape[1:])) for part in parts])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", JOINS)
def test_each_level_of_the_encoder_is_joined_with_its_own_level_of_the_decoder(name: str) -> None:
    plan = plan_for(name, base=24)
    place, expected = JOINS[name]
    adds = name in ("mednext", "segresnet")
    network = new(name, plan).eval()
    with torch.no_grad(), _Joins(network, adds=adds) as joins:
        network(torch.zeros(1, 1, *plan.window, device="meta"))
    # A level of the encoder or of the decoder also adds within itself
    top = expected[0].partition(".")[0] if adds else "-"
    found = [(join[place], join[1 - place]) for join in joins.found if not join[1 - place][0].startswith(top)]
    found = [join for join in found if any(f"{join[0][0]}.".startswith(f"{origin}.") for origin in expected)]
    assert len(found) == len(expected)
    for number, (origin, (encoder, decoder)) in enumerate(zip(expected, found, strict=True)):
        assert f"{encoder[0]}.".startswith(f"{origin}.")
        assert encoder[1][1:] == decoder[1][1:]
        halvings = {len(expected) - 1 - number, len(expected) - number}  # MONAI's flexible U-Net begins with a stride
        assert encoder[1][1:] in [tuple(size // 2**n for size in plan.window) for n in halvings]


def test_nested_levels_are_joined_in_their_order() -> None:
    plan = plan_for("unet_plus_plus")
    network = new("unet_plus_plus", plan).eval()
    seen: list[tuple[str, list[int]]] = []
    for name, module in network.named_children():
        if name.startswith("upcat"):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.append((name, [part.shape[1] for part in inputs]))
            )
    with torch.no_grad():
        network(torch.zeros(1, 1, *plan.window, device="meta"))
    # Node (level, column): from below with the channels of the level below, and all earlier nodes of its own level
    widths = (16, 32, 64, 128, 128)
    nodes = [(level, column) for column in range(1, 5) for level in range(5 - column)]
    assert dict(seen) == {
        f"upcat_{level}_{column}": [widths[level + 1], column * widths[level]] for level, column in nodes
    }


def test_deep_supervision_answers_with_heads_in_training_and_with_one_tensor_in_use() -> None:
    for name in NAMES:
        if "deep_supervision" in known(name).values:
            plan = plan_for(name)
            network = new(name, plan, deep_supervision="yes")
            image = torch.zeros(1, 1, *plan.window, device="meta")
            answers = network.train()(image)
            assert isinstance(answers, list | tuple) or answers.dim() == image.dim() + 1
            assert network.eval()(image).shape == (1, 3, *plan.window)
            assert not any(key.startswith(("network.", "model.")) for key in network.state_dict())


def kinds(network: nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules()}


SIGNS: Mapping[tuple[str, str], str] = {
    ("norm", "instance"): "InstanceNorm3d", ("norm", "batch"): "BatchNorm3d", ("norm", "group"): "GroupNorm",
    ("upsample", "transposed"): "ConvTranspose3d", ("upsample", "resize"): "Upsample",
}  # fmt: skip


@each
def test_a_value_changes_what_it_says(name: str) -> None:
    plan = plan_for(name, base=24)
    usual = new(name, plan)
    for value, allowed in known(name).values.items():
        if value == "dropout":
            found = [
                part.p
                for part in new(name, plan, dropout="0.25").modules()
                if isinstance(part, nn.Dropout | nn.Dropout3d)
            ]
            assert 0.25 in found, (name, value)
            continue
        for word in allowed:
            network = new(name, plan, **{value: word})
            if (value, word) in SIGNS:
                assert SIGNS[value, word] in kinds(network), (name, value, word)
            elif word == next(iter(allowed)):
                assert str(network) == str(usual)
            elif value != "deep_supervision":
                assert str(network) != str(usual), (name, value, word)


def test_the_light_network_is_light() -> None:
    for images, base in (("3d", 32), ("2d", 32)):
        plan = plan_for("light_unet", images, base)
        assert sum(weight.numel() for weight in new("light_unet", plan, channels=3).parameters()) <= 1_000_000


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"name": "unet3"}, "--network unet3: there is no network and no bundle of this name; one of attention_unet"),
        ({"values": {"norm": "layer"}}, "--network-value norm=layer: unet takes instance, batch, group as norm"),
        ({"values": {"dropout": "1.5"}}, "dropout=1.5: a number from 0 to 1, without 1, is needed"),
        ({"values": {"dropout": "much"}}, "dropout=much: a number from 0 to 1"),
        (
            {"values": {"kernel": "3"}},
            "--network-value kernel=3: unet takes norm=instance|batch|group, dropout=0.0, upsample=",
        ),
    ],
)
def test_what_a_network_does_not_take_is_refused_with_what_it_takes(told: dict[str, Any], message: str) -> None:
    with pytest.raises(InputRefusedError) as refused:
        written(NetworkChoice(**{"name": "unet", **told}), plan_for("unet"), 1)
    assert message in str(refused.value)


def test_memory_beside_the_network_of_a_plan() -> None:
    plan = plan_for("dynunet")
    assert memory_beside(plan, 1, 3, NetworkChoice()) == (1.0, 0.0)
    # Residual blocks keep what they add; a network with twice the filters keeps about twice as much
    assert memory_beside(plan, 1, 3, NetworkChoice("dynunet", {"residual": "yes"}))[0] > 1.1
    factor, weights = memory_beside(plan, 1, 3, NetworkChoice("unetr"))
    assert factor > 1
    assert weights == pytest.approx(20 * (26.2e6 - 1.4e6), rel=0.05)


def test_another_network_for_the_windows_of_a_bundle(tmp_path: Path) -> None:
    source = load_bundle("hippocampus_mri_unet3d")
    copy = family.with_network(source, NetworkChoice("residual_unet", {"norm": "batch"}), tmp_path / "copy")
    before, after = (yaml.safe_load((root / "configs/inference.yaml").read_text()) for root in (source.root, copy.root))
    changed = {key for key in before if before[key] != after[key]}
    assert before.keys() == after.keys()
    assert changed == {"new_network", "feature_layer"}
    assert after["new_network"]["channels"] == [24, 48, 96, 192, 192]  # it begins as wide as the other
    assert after["new_network"]["norm"] == "BATCH"
    assert after["new_network"]["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def test_a_network_that_the_window_does_not_fit_is_refused_with_the_nearest(tmp_path: Path, run: Run) -> None:
    answer = run(
        "train", "--bundle", "hippocampus_mri_unet3d", "--data", EXAMPLES, "--network",
        "swin_unetr", "--output", tmp_path / "out",
    )  # fmt: skip
    assert answer.code == 3
    assert "`window` is 32 x 48 x 32" in answer.err
    assert "32 x 32 x 32 or 32 x 64 x 32 would work" in answer.err or "32 x 64 x 32" in answer.err
    assert "monai-unet plan --network swin_unetr" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_block_of_its_network_is_refused(tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle_files("hippocampus_mri_unet3d").root, tmp_path / "own"))
    config = root / "configs/inference.yaml"
    config.write_text(config.read_text().replace("new_network:\n  _target_", "new_network: {}\nother:\n  _target_"))
    with pytest.raises(Exception, match="has no `new_network:` with its lines below it"):
        family.with_network(load_bundle(root), NetworkChoice("unet"), tmp_path / "copy")


def planned(data: Path, network: str, configuration: str, root: Path) -> Bundle:
    said = PlanConfig(
        data, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=60.0, configuration=configuration,
        network=NetworkChoice(network),
    )  # fmt: skip
    write_plan(plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels), root)
    return load_bundle(root)


def test_the_weights_of_a_bundle_fit_a_plan_for_its_network(tmp_path: Path) -> None:
    data = tilted_volumes(tmp_path / "data")
    bundle = planned(data, "hippocampus_mri_unet3d", "3d", tmp_path / "plan")
    network, donor = bundle.part("network_def"), find_donor("hippocampus_mri_unet3d")
    assert donor.fitting(network).keys() == network.state_dict().keys()  # the head too: both have two structures
    assert all(size % 8 == 0 for size in bundle.windows.window)
    assert bundle.windows.window != load_bundle("hippocampus_mri_unet3d").windows.window
    bundle.check_network()


def test_a_bundle_that_tells_no_strides_keeps_its_window(tmp_path: Path) -> None:
    data = tilted_volumes(tmp_path / "data")
    first = planned(data, "unetr", "3d", tmp_path / "unetr")
    second = planned(data, str(first.root), "3d", tmp_path / "again")
    assert second.windows.window == first.windows.window
    blocks = [yaml.safe_load((root / "configs/inference.yaml").read_text()) for root in (first.root, second.root)]
    assert blocks[0]["new_network"] == blocks[1]["new_network"]
    assert blocks[0]["feature_layer"] == blocks[1]["feature_layer"]
    versions = [json.loads((one.root / "configs/metadata.json").read_text()) for one in (first, second)]
    assert "einops" in versions[1]["required_packages_version"]
    assert versions[0]["required_packages_version"] == versions[1]["required_packages_version"]


def test_the_network_of_a_bundle_takes_as_many_channels_as_the_new_images_have() -> None:
    block, layer = written(NetworkChoice("retina_vessel_unet2d"), plan_for("dynunet", "2d"), 1)
    assert (yaml.safe_load(block)["new_network"]["in_channels"], layer) == (1, "bottleneck")
    assert (
        yaml.safe_load(written(NetworkChoice("retina_vessel_unet2d"), plan_for("dynunet", "2d"), 4)[0])["new_network"][
            "in_channels"
        ]
        == 4
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("\nwindow: [32, 48, 32]", "\nwindow: $[32, 48, 32]"),
        ("  strides: [1, 2, 2, 2]", "  strides: $[1] + [2] * 3"),
        ("  filters: [24, 48, 96, 128]", "  filters: $[24 * 2**n for n in range(4)]"),
        ("\nfeature_layer: \"$'bottleneck' if @count == 1", '\nfeature_layer: "$@somewhere if @count == 1'),
    ],
)
def test_a_bundle_whose_network_is_no_plain_value_is_refused(tmp_path: Path, before: str, after: str) -> None:
    root = Path(shutil.copytree(bundle_files("hippocampus_mri_unet3d").root, tmp_path / "own"))
    config = root / "configs/inference.yaml"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(BundleError, match="a bundle of monai-unet plan is needed"):
        known(str(root))


def test_a_layer_that_is_named_alone_is_taken(tmp_path: Path) -> None:
    root = Path(shutil.copytree(bundle_files("hippocampus_mri_unet3d").root, tmp_path / "own"))
    config = root / "configs/inference.yaml"
    config.write_text(family._LAYER.sub("feature_layer: downsamples.1  # another", config.read_text()))
    assert known(str(root)).feature_layer == "downsamples.1"


def test_a_network_that_a_bundle_says_takes_no_values() -> None:
    with pytest.raises(
        InputRefusedError, match="norm=batch: hippocampus_mri_unet3d is as its bundle says; leave it out"
    ):
        written(NetworkChoice("hippocampus_mri_unet3d", {"norm": "batch"}), plan_for("dynunet"), 1)


def test_the_network_of_a_2d_bundle_is_refused_for_windows_of_3d(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="its windows have 2 axes, and those of this plan have 3"):
        planned(tilted_volumes(tmp_path / "data"), "hippocampus_mri_unet2d", "3d", tmp_path / "plan")


def test_numbers_of_a_template_are_numbers_for_yaml() -> None:
    values = [1.5e-05, 1e-05, -2.25e-07, 1e22, 3, {"a": 7e-09, "b": "1e-5"}]
    assert yaml.safe_load(yaml_text(values)) == values
