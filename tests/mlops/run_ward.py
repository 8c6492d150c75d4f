"""A node with its HTTP server and a fake worker, as a process of its own: `python run_ward.py SITE.toml`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from monai_unet_app.service import drift_watch
from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.stop_signal import StopSignal


def main() -> None:
    """Runs until it is told to end."""
    stop, site = StopSignal(signal.SIGTERM), read_site(Path(sys.argv[1]))
    drift_watch._EVERY_S = 3.0  # an hour of the game
    assert site.http is not None
    with Node(site, worker="fake_worker") as node, serve(node, site.http):
        print("ready", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
