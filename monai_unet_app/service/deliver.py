"""The sender: one result to one destination at a time.

python -m monai_unet_app.service.deliver SITE.toml
"""

import sys
import time
from functools import partial
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.net.exchange import send
from monai_unet_app.service.child_processes import Message, serve
from monai_unet_app.service.lost_results import why_lost
from monai_unet_app.service.site_file import Site, read_site
from monai_unet_app.service.work import variant_of


def answer(site: Site, message: Message) -> Message:
    """The answer to a task: {"delivered": number of files, "seconds": ...}, {"failed": why}, or {"lost": what is wrong}.

    No file of a result is sent if the digest of its files is not the digest that the node recorded.
    """
    begin = time.perf_counter()
    destination, folder = site.destinations[message["destination"]], Path(message["folder"])
    try:
        if lost := why_lost(folder, message["digest"]):
            return {"lost": lost}
        files = sorted((folder / variant_of(destination)).rglob("*.dcm"))
        outcomes = send(destination, files)
    except (DicomIoError, OSError) as error:
        return {"failed": str(error)}
    # An object that the destination's profile does not want is no failure.
    failed = [outcome for outcome in outcomes if not outcome.is_delivered and outcome.state != "left out"]
    if failed:
        first = f"{failed[0].kind or 'image'} {failed[0].state}, {failed[0].meaning}"
        return {"failed": f"{len(failed)} of {len(outcomes)} objects; the first: {first}"}
    count = sum(outcome.is_delivered for outcome in outcomes)
    if not count:
        return {"failed": f"{destination.name} takes nothing of what the rule makes; correct formats or profile"}
    return {"delivered": count, "seconds": round(time.perf_counter() - begin, 3)}


def main() -> None:
    """Serves a node until it is gone."""
    site = read_site(Path(sys.argv[1]))
    serve(lambda: (partial(answer, site), {}))


if __name__ == "__main__":
    main()
