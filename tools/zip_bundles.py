"""One zip for each bundle: `make dist`.

python tools/zip_bundles.py dist
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from monai_unet_app.bundle import load_bundle
from monai_unet_app.shipped import shipped

LEFT_OUT = {"run", "eval", "data", "__pycache__"}


def main(folder: Path) -> None:
    """Writes <name>-<version>.zip of each bundle; times in it are fixed, so that the same bundle gives the same zip."""
    folder.mkdir(parents=True, exist_ok=True)
    for root in sorted(path.parents[1] for path in shipped("bundles").glob("*/configs/metadata.json")):
        name = root.name
        target = folder / f"{name}-{load_bundle(root).version}.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(root.rglob("*")):
                if file.is_file() and not LEFT_OUT & set(file.relative_to(root).parts):
                    entry = zipfile.ZipInfo(f"{name}/{file.relative_to(root)}", (2020, 1, 1, 0, 0, 0))
                    entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
                    archive.writestr(entry, file.read_bytes())
        print(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
