#!/usr/bin/env python3
"""The entry point of a MONAI application package, in the image /var/holoscan/tools.

    tools               becomes the application; its exit code and the signals to the container stay its own
    tools show [app|pkg]   prints the manifests
    tools env           prints the environment
    tools extract       copies what the package holds to the mounts below /var/run/holoscan/export

It is copied out of here as it stands and needs nothing but Python.
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

APP = Path(os.environ.get("HOLOSCAN_APP_MANIFEST_PATH", "/etc/holoscan/app.json"))
PACKAGE = Path(os.environ.get("HOLOSCAN_PKG_MANIFEST_PATH", "/etc/holoscan/pkg.json"))
CONFIG = Path(os.environ.get("HOLOSCAN_CONFIG_PATH", "/var/holoscan/app.yaml"))
FOLDERS = {
    "app": Path(os.environ.get("HOLOSCAN_APPLICATION", "/opt/holoscan/app")),
    "models": Path(os.environ.get("HOLOSCAN_MODEL_PATH", "/opt/holoscan/models")),
    "docs": Path(os.environ.get("HOLOSCAN_DOCS_PATH", "/opt/holoscan/docs")),
}
EXPORT = Path("/var/run/holoscan/export")
STACK = 32 * 1024 * 1024  # bytes; Holoscan asks for as much, a container usually starts with 8 MiB and may take more
RELATIVE = ("HOLOSCAN_INPUT_PATH", "HOLOSCAN_OUTPUT_PATH")


def main(words: list[str]) -> int:
    """Runs the command that the words name; other words go to the application, which replaces this process."""
    if words[:1] == ["show"]:
        return show(words[1:])
    if words == ["env"]:
        sys.stdout.write("".join(f"{name}={value}\n" for name, value in sorted(os.environ.items())))
        return 0
    if words == ["extract"]:
        return extract()
    if words == ["help"]:
        sys.stdout.write(__doc__ or "")
        return 0
    return launch(words)


def launch(words: list[str]) -> int:
    """Becomes the application that app.json names, with these words as its arguments."""
    try:
        manifest = json.loads(APP.read_text())
        command = [str(word) for word in json.loads(manifest["command"])]
        # Variables of the host take precedence over those of the manifest.
        environment = {**_environment(manifest), **os.environ}
        # The limit of the stack outlasts exec, so that the application starts with it.
        _widen_stack()
        os.chdir(manifest["workingDirectory"])
        os.execvpe(command[0], command + words, environment)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        sys.stderr.write(
            f"error: the application cannot be started ({type(error).__name__}: {error}); a whole package with {APP} is "
            "needed; build the image again\n"
        )
    return 1


def _widen_stack() -> None:
    """Raises the limit of the stack to STACK, or as far as the host allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    limit = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_STACK, (limit, hard))


def _environment(manifest: dict[str, Any]) -> dict[str, str]:
    """The environment variables of the manifest, with input and output as absolute paths."""
    values = {name: str(value) for name, value in (manifest.get("environment") or {}).items()}
    here = Path(manifest["workingDirectory"])
    return values | {name: str(here / values[name]) for name in RELATIVE if name in values}


def show(words: list[str]) -> int:
    """Prints app.json, pkg.json or both."""
    manifests = {"app": APP, "pkg": PACKAGE}
    if not set(words) <= set(manifests):
        sys.stderr.write(f"error: show {' '.join(words)}: app or pkg is needed, or no word for both\n")
        return 2
    for name in words or manifests:
        sys.stdout.write(manifests[name].read_text())
    return 0


def extract() -> int:
    """Copies app, models, docs and config to the mounts with these names; without such mounts, copies all of them."""
    if not EXPORT.is_dir():
        sys.stderr.write(
            f"error: {EXPORT} is not a folder; a folder for the contents of the package is needed; mount one there\n"
        )
        return 1
    names = (*FOLDERS, "config")
    for name in [name for name in names if (EXPORT / name).is_dir()] or names:
        if name == "config":
            (EXPORT / name).mkdir(exist_ok=True)
            for file in (APP, PACKAGE, CONFIG):
                shutil.copyfile(file, EXPORT / name / file.name)
        elif FOLDERS[name].is_dir():
            shutil.copytree(FOLDERS[name], EXPORT / name, dirs_exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
