"""The configs of a bundle whose network is the mean of the networks of its folds, written as text and taken back.

`network_def` becomes a list of networks, as `monai-unet plan --networks` writes it. All else stays as it is, and what was
written can be taken back byte for byte: a run of a fold is resumed with the recipe that began it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from monai_unet_app.calibration.inference_yaml import read_text, write_text
from monai_unet_app.errors import BundleError

_BEGIN = "# The networks of the folds, by monai-unet train --deliver ensemble; their answer is the mean of their logits"
_END = "# End of the networks of the folds"
_NETWORK = re.compile(r"^network_def:(.*\n(?: .*\n)*)", re.MULTILINE)
_LAYER = re.compile(r"^feature_layer: (\S+)", re.MULTILINE)
_TAKEN = re.compile(r"^(network_1|of_fold|answers|mean):", re.MULTILINE)
_BLOCK = re.compile(rf"^{re.escape(_BEGIN)}\n(?:.*\n)*?{re.escape(_END)}\n", re.MULTILINE)

_SWAPS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "inference": (
        ("\n  _target_: SupervisedEvaluator\n", "\n  _target_: EnsembleEvaluator\n"),
        ('\n  network: "@network"\n', '\n  networks: "$list(@network)"\n  pred_keys: "@answers"\n'),
        ('"$@result + @save"\n', '"$@mean + @result + @save"\n'),
    ),
    "evaluate": (('\n  transforms: "@result"\n', '\n  transforms: "$@mean + @result"\n'),),
    "calibrate": (("\npostprocessing: null\n", '\npostprocessing: {_target_: Compose, transforms: "@mean"}\n'),),
}
"""Config -> texts for a single network, each with its text for several."""


def is_ensemble(inference: str) -> bool:
    """Whether this text of an inference.yaml names the networks of folds."""
    return bool(_BLOCK.search(inference))


def with_ensemble(config: str, text: str, count: int) -> str:
    """The text of a config for the mean of so many networks.

    Args:
        config: "inference", "evaluate" or "calibrate".
        text: Its text for a single network.
        count: Number of the networks.

    Raises:
        BundleError: The text is not written as `monai-unet plan` writes it, or has several networks already.
    """
    for single, several in _SWAPS[config]:
        if text.count(single) != 1:
            raise _unknown(config, f"{text.count(single)} line(s) `{single.strip()}`")
        text = text.replace(single, several)
    if config != "inference":
        return text
    if taken := _TAKEN.search(text):
        raise _unknown(config, f"an id `{taken[1]}` of its own")
    if len(_NETWORK.findall(text)) != 1:
        raise _unknown(config, "no `network_def` on lines of its own")
    layer = _LAYER.search(text)
    block = _networks(count, layer[1] if layer else None)
    text = _NETWORK.sub(lambda old: f"network_1:{old[1]}{block}", text)
    return _LAYER.sub(r"feature_layer: 0.\1", text)


def without_ensemble(config: str, text: str) -> str:
    """The text of a config for a single network, before `with_ensemble`; of an "inference" without folds, the text as it is."""
    if config == "inference":
        if not is_ensemble(text):
            return text
        text = re.sub(r"^network_1:", "network_def:", _BLOCK.sub("", text), count=1, flags=re.MULTILINE)
        text = re.sub(r"^feature_layer: 0\.", "feature_layer: ", text, flags=re.MULTILINE)
    for single, several in _SWAPS[config]:
        text = text.replace(several, single)
    return text


def ensemble_texts(root: Path, count: int) -> dict[Path, str]:
    """Path -> text of each config of a bundle, for the mean of so many networks. Raises BundleError as `with_ensemble`."""
    texts = _read(root)
    if is_ensemble(texts["inference"]):
        texts = {config: without_ensemble(config, text) for config, text in texts.items()}
    return {_path(root, config): with_ensemble(config, text, count) for config, text in texts.items()}


def write_single(root: Path) -> bool:
    """Takes the ensemble out of a bundle's configs; gives whether there was one."""
    texts = _read(root)
    if not is_ensemble(texts["inference"]):
        return False
    for config in reversed(texts):  # inference.yaml last: it says whether there is something to take back
        write_text(_path(root, config), without_ensemble(config, texts[config]))
    return True


def _read(root: Path) -> dict[str, str]:
    paths = {config: _path(root, config) for config in _SWAPS}
    return {config: read_text(path) for config, path in paths.items() if config == "inference" or path.is_file()}


def _path(root: Path, config: str) -> Path:
    return root / f"configs/{config}.yaml"


def _networks(count: int, layer: str | None) -> str:
    names = [f"network_{n}" for n in range(1, count + 1)]
    modules = ", ".join(f'"@{name}"' for name in names)
    of_fold = 'network_def: "@network_1"' + (f", feature_layer: {layer}" if layer else "")
    lines = [
        _BEGIN,
        *(f'{name}: "%network_1"' for name in names[1:]),  # MONAI's macro: the same settings, another network
        f"network_def: {{_target_: torch.nn.ModuleList, modules: [{modules}]}}",
        f"of_fold: {{{of_fold}}}  # instead, where the network of one fold is meant, whose weights lie in folds/",
        f"answers: [{', '.join(f'pred_{n}' for n in range(count))}]",
        "mean:",
        "- _target_: MeanEnsembled",
        '  keys: "@answers"',
        "  output_key: pred",
        _END,
    ]
    return "\n".join(lines) + "\n"


def _unknown(config: str, found: str) -> BundleError:
    return BundleError(
        f"{config}.yaml has {found}; for an ensemble of folds it must be as monai-unet plan writes it for one network; take it "
        "over from a plan, or give --deliver all-data"
    )
