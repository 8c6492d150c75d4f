"""A node as a process of its own, with the worker that is named: `python run_node.py SITE.toml WORKER`."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

from monai_unet_app.service.node import Node
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.stop_signal import StopSignal


def main() -> None:
    """Runs until it is told to end, or killed."""
    logging.basicConfig(level=logging.WARNING)
    stop = StopSignal(signal.SIGTERM)
    with Node(read_site(Path(sys.argv[1])), worker=sys.argv[2]) as node:
        while not node.is_ready and not stop.wait(0.05):
            pass
        print("ready", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
