"""The sender: one result to one destination at a time.

python -m monai_unet_app.service.deliver SITE.toml
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.net.exchange import send
from monai_unet_app.service.child_processes import Message, serve
from monai_unet_app.service.lost_results import why_lost
from monai_unet_app.service.site_file import Site, read_site
from monai_unet_app.service.work import variant_of


class Sender:
    """The destinations of a site, and how they are given a result."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def answer(self, message: Message) -> Message:
        """{"delivered": how many files}, {"failed": why}, or {"lost": how}; never raises.

        Nothing is sent of a result whose files are not those that were made, by the digest that the node recorded.
        """
        begin = time.perf_counter()
        destination, folder = self.site.destinations[message["destination"]], Path(message["folder"])
        try:
            if how := why_lost(folder, message["digest"]):
                return {"lost": how}
            files = sorted((folder / variant_of(destination)).rglob("*.dcm"))
            outcomes = send(destination, files)
        except (DicomIoError, OSError) as error:
            return {"failed": str(error)}
        lost = [one for one in outcomes if not one.is_delivered and one.state != "left out"]
        if lost:
            first = f"{lost[0].kind or 'image'} {lost[0].state}, {lost[0].meaning}"
            return {"failed": f"{len(lost)} of {len(outcomes)} objects; the first: {first}"}
        count = sum(one.is_delivered for one in outcomes)
        if not count:
            return {"failed": f"{destination.name} takes nothing of what the rule makes; correct formats or profile"}
        return {"delivered": count, "seconds": round(time.perf_counter() - begin, 3)}


def main() -> None:
    """Serves a node until it is gone."""
    site = read_site(Path(sys.argv[1]))
    serve(lambda: Sender(site).answer)


if __name__ == "__main__":
    main()
