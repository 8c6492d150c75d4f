"""A bundle -> the tree of a MONAI application package, ready for `docker build`.

    Dockerfile, LICENSE             one file for both kinds of image: --build-arg DEVICE=cpu (the default) or gpu
    requirements.txt, unhashed.txt  packages with the hashes that PyPI states; torch and what only the bundle asks for
    root/                           the files of every image: the application, the model, app.json, the entry point
    cpu/, gpu/                      the files of that kind only: pkg.json, app.yaml

The layout is that of `monai-deploy package` of holoscan-cli 4.2.0. The tree is a function of the bundle, the settings and this
version: the same bytes, modes and times each time.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml

import dicom_io
import monai_unet_app
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import BundleFiles, bundle_files
from monai_unet_app.confidence.statements import read_confidence
from monai_unet_app.deploy import entry
from monai_unet_app.deploy.settings import Settings, common_manifest, image_paths, template
from monai_unet_app.dicom_results import check_coded, check_possible
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.pipeline import settings_of

Device = Literal["cpu", "gpu"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu")
PLATFORMS = {"cpu": "cpu", "gpu": "dgpu"}
TIME = 1577836800  # 2020-01-01, as in the zips of the bundles
_IGNORED = shutil.ignore_patterns("run", "folds", "cache", "eval", "data", "__pycache__", "*.pyc", ".*")
"""Files and folders in the folder of a bundle that are not part of the bundle."""


@dataclass(frozen=True)
class Resources:
    """The resources that a run needs, as Kubernetes writes them.

    Attributes:
        cpu: Cores.
        memory: Memory of the machine.
        gpu_memory: Memory of the GPU, in an image for a GPU.
    """

    cpu: int = 2
    memory: str = "4Gi"
    gpu_memory: str = "4Gi"

    def on(self, device: Device) -> dict[str, Any]:
        """`resources:` of an app.yaml, which is also "resources" of a pkg.json."""
        gpu = {"gpuMemory": self.gpu_memory} if device == "gpu" else {}
        return {"cpu": self.cpu, "gpu": int(device == "gpu"), "memory": self.memory, **gpu}


def render_package(
    bundle: str | Path, output: Path, settings: Settings | None = None, resources: Resources | None = None
) -> Path:
    """Writes the package of a bundle into a new folder, and gives that folder.

    Args:
        bundle: Name, folder or zip of a trained bundle.
        output: The new folder; it appears when it is complete.
        settings: Defaults of the application's settings; by default `usual_settings`.
        resources: What a run needs; by default `Resources()`.

    Raises:
        UsageError: The output exists, or there is no bundle of that name.
        InputRefusedError: The bundle is for pictures, and one of the formats cannot be made from pictures.
        BundleError: The folder is no bundle, has no weights, findings of other weights or a structure without a code, or needs
            another version of a package than the image has.
    """
    output = Path(os.path.abspath(output))
    if os.path.lexists(output):
        raise UsageError(f"--output {output} exists; a new folder is needed; name another folder, or remove this one")
    model = bundle_files(bundle)
    model.check_trained()
    model.check_fitted()
    settings = settings or usual_settings(model.root)
    check_coded(model.name, model.segments)
    loaded = load_bundle(model.root)
    if loaded.rules.planar:
        check_possible(model.name, settings.format)
    read_confidence(loaded, settings_of(settings.run, loaded))  # refuses wider intervals that the bundle does not state
    requirements = image_requirements(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of the output and so on the same file system, where the whole tree can appear by one rename.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".partial-") as partial:
        tree = Path(partial) / output.name
        _write_common(model, tree, requirements)
        for device in DEVICES:
            _write_for(device, model, tree, settings, resources or Resources())
        _settle(tree)
        os.rename(tree, output)
    return output


def usual_settings(bundle: str | Path) -> Settings:
    """The default settings of a package: SEG and SR, or only SEG for a bundle for pictures."""
    return Settings(format=("seg",)) if load_bundle(bundle).rules.planar else Settings()


def image_requirements(model: BundleFiles) -> str:
    """Every Python package of an image with its version, with the packages that the bundle's metadata asks for.

    Raises:
        BundleError: The bundle asks for another version of a package than the image has.
    """
    pinned = template("requirements.txt")
    versions = {_normalized(name): number for name, number in (line.split("==") for line in pinned.splitlines())}
    required = model.metadata.get("required_packages_version") or {}
    if odd := [one for pair in required.items() for one in pair if not re.fullmatch(r"[\w.+!-]+", str(one))]:
        raise BundleError(
            f"{model.name} requires {odd[0][:64]!r}; names and versions of packages are needed; correct "
            "required_packages_version in metadata.json"
        )
    in_image = {name: versions[_normalized(name)] for name in required if _normalized(name) in versions}
    different = [
        f"{name} {required[name]} (the image has {number})"
        for name, number in in_image.items()
        if number != required[name]
    ]
    if different:
        raise BundleError(
            f"{model.name} requires {', '.join(different)}; the versions of the image are needed, because they were tested "
            "together; "
            "write them into required_packages_version of its metadata.json once the bundle is tested with them"
        )
    return pinned + "".join(f"{name}=={required[name]}\n" for name in sorted(set(required) - set(in_image)))


def unhashed(requirements: str, hashed: str) -> str:
    """The lines of `requirements` for which `hashed` has no hash.

    These are torch, whose build for the CPU comes from an index of its own, and packages that only the bundle asks for.
    """
    known = {_normalized(line.split("==")[0]) for line in hashed.splitlines() if "==" in line}
    return "".join(f"{line}\n" for line in requirements.splitlines() if _normalized(line.split("==")[0]) not in known)


def _normalized(name: str) -> str:
    """The name of a package as indexes compare it (PEP 503), without extras."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def app_manifest(config: dict[str, Any]) -> dict[str, Any]:
    """The app.json of a package with this app.yaml: how to start the application, and the paths of its files."""
    application, manifest = config["application"], common_manifest()
    manifest["output"]["formats"] = application["output-formats"]
    return {**manifest, "version": application["version"]}


def package_manifest(config: dict[str, Any], device: Device) -> dict[str, Any]:
    """The pkg.json of an image: the paths of application and model, and the resources of a run."""
    manifest, name = common_manifest(), config["bundle"]["name"]
    models = manifest["environment"]["HOLOSCAN_MODEL_PATH"]
    return {
        "apiVersion": manifest["apiVersion"],
        "applicationRoot": manifest["environment"]["HOLOSCAN_APPLICATION"],
        "modelRoot": models,
        "models": {name: f"{models}/{name}"},
        "resources": config["resources"],
        "version": config["application"]["version"],
        "platformConfig": PLATFORMS[device],
    }


def app_config(model: BundleFiles, device: Device, settings: Settings, resources: Resources) -> dict[str, Any]:
    """The app.yaml of an image: the entries for the packager, the bundle, and the settings that a site may change."""
    return {
        "application": {
            "title": model.name,
            "version": model.version,
            "input-formats": ["DICOM"],
            "output-formats": list(settings.format),
        },
        "resources": resources.on(device),
        "bundle": {"name": model.name, "sha256": model.sha256},
        "segmentation": settings.chosen,
    }


def _write_common(model: BundleFiles, tree: Path, requirements: str) -> None:
    app, models, work = (tree / "root" / name for name in ("opt/holoscan/app", "opt/holoscan/models", "var/holoscan"))
    for package in (monai_unet_app, dicom_io):
        code = Path(str(files(package)))
        # _shipped holds the bundles and examples of an installed wheel; an image has its own bundle only.
        shutil.copytree(code, app / code.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "_shipped"))
    _write(app / "__main__.py", template("application.py"))
    shutil.copytree(model.root, models / model.name, ignore=_IGNORED)
    for folder in ("input", "output"):
        (work / folder).mkdir(parents=True)
    shutil.copyfile(entry.__file__, work / "tools")
    for place in ("LICENSE", "root/opt/holoscan/docs/LICENSE"):
        _write(tree / place, our_license())
    hashed = template("hashed.txt")
    _write(tree / "requirements.txt", hashed)
    _write(tree / "unhashed.txt", unhashed(requirements, hashed))
    _write(tree / "Dockerfile", _dockerfile(model))


def our_license() -> str:
    """The licence of this software, from the repository or from the metadata of an installed wheel."""
    beside = Path(monai_unet_app.__file__).parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    text = distribution("monai-unet-app").read_text("licenses/LICENSE")
    if text is None:
        raise BundleError(
            "the licence of this software is not installed with it; a complete installation is needed; reinstall it"
        )
    return text


def _dockerfile(model: BundleFiles) -> str:
    # Both stand in lines that Docker obeys
    for what, text in (("name", model.name), ("version", str(model.version))):
        if not re.fullmatch(r"[\w.+ -]+", text):
            raise BundleError(
                f"the {what} of the bundle is {text[:64]!r}; letters, digits, '.', '+', '-' and '_' are needed in a package; "
                "rename the folder, or correct metadata.json"
            )
    return _DockerfileTemplate(template("Dockerfile")).substitute(
        title=model.name,
        version=model.version,
        bundle=model.sha256,
        environment=" \\\n    ".join(f"{name}={path}" for name, path in image_paths().items()),
        sdk=common_manifest()["sdkVersion"],
        software=monai_unet_app.__version__,
    )


class _DockerfileTemplate(Template):
    """A template with placeholders %{name}, because $ has a meaning of its own in a Dockerfile."""

    delimiter = "%"


def _write_for(device: Device, model: BundleFiles, tree: Path, settings: Settings, resources: Resources) -> None:
    config = app_config(model, device, settings, resources)
    _write(tree / device / "var/holoscan/app.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    _write(tree / device / "etc/holoscan/pkg.json", json.dumps(package_manifest(config, device), indent=2) + "\n")
    _write(tree / "root/etc/holoscan/app.json", json.dumps(app_manifest(config), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())  # in UTF-8 and with its line ends, whatever machine makes the package


def _settle(tree: Path) -> None:
    """Sets the same modes and times on every machine: any user may read the files and run the entry point."""
    for path in sorted(tree.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() or path.name == "tools" else 0o644)
        os.utime(path, (TIME, TIME))
    tree.chmod(0o755)
    os.utime(tree, (TIME, TIME))
