"""The sender: one result to one destination at a time.

python -m monai_unet_app.service.deliver SITE.toml
"""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.net.destination import Destination
from dicom_io.net.exchange import send
from dicom_io.net.outgoing import prepare_files
from monai_unet_app import __version__
from monai_unet_app.service.child_processes import Message, serve
from monai_unet_app.service.lost_results import why_lost
from monai_unet_app.service.result_folder import digest_of, variant_of
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site


def answer(site: Site, message: Message) -> Message:
    """The answer to a task: {"delivered": number of files, "seconds": ...}, {"failed": why}, or {"lost": what is wrong}.

    No file of a result is sent if the digest of its files is not the digest that the node recorded. If the task has "replaced",
    earlier versions that the destination has, the answer has what `_write_note` gives back.
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
        return {"failed": f"{destination.name} takes none of the formats of the rule; correct formats or profile"}
    try:
        # Written before the node records the delivery, so that both are recorded at one time.
        note = _write_note(destination, files, message["replaced"]) if "replaced" in message else {}
    except OSError as error:
        return {"failed": f"the rejection note for earlier versions cannot be written ({error.strerror})"}
    return {"delivered": count, "seconds": round(time.perf_counter() - begin, 3), **note}


def _write_note(destination: Destination, later: Sequence[Path], replaced: Message) -> Message:
    """Writes the note that rejects earlier versions of a result, naming the objects that the destination has got of them.

    An object that is in the later version as well is not named: after a change of the rule's formats a version may share a SEG
    with the version before.

    Args:
        destination: It has got the later version.
        later: The files of the later version.
        replaced: "versions": [number, folder, digest] of each earlier version; "note": folder for the note; "by": number of the
            later version; "at": the time at which it was made, in seconds since 1970.

    Returns:
        "named": the numbers of the versions that the note names; "unnamed": of those that it cannot name; "why": the reason;
        "versions": of all that were asked for; "digest": of the note, empty if there is none.
    """
    folder, named, unnamed, objects = Path(replaced["note"]), list[int](), list[int](), list[Path]()
    kept = {item.sop_instance_uid for item in prepare_files(later, destination.profile)[0]}
    for number, version, digest in replaced["versions"]:
        if why_lost(Path(version), digest):
            unnamed.append(number)
            continue
        sent, _ = prepare_files(sorted((Path(version) / variant_of(destination)).rglob("*.dcm")), destination.profile)
        if files := [item.file for item in sent if item.sop_instance_uid not in kept]:
            named.append(number)
            objects += files
    versions = [number for number, *_ in replaced["versions"]]
    told = {"versions": versions, "named": [], "unnamed": unnamed, "why": "its files are lost", "digest": ""}
    if not objects:
        return told
    # highdicom comes with this import; a sender needs it for nothing else.
    from dicom_io.rejection import Program, Rejection, write_rejection_note

    # The time is that of the later version, so that a second try writes the same bytes.
    moment = datetime.fromtimestamp(replaced["at"], UTC)
    text = f"replaced by a later result of the same series (result {replaced['by']} of the node)"
    shutil.rmtree(folder, ignore_errors=True)  # of a delivery that was not recorded
    target = folder / variant_of(destination) / f"{folder.name}_rejection.dcm"
    target.parent.mkdir(parents=True)
    try:
        write_rejection_note(objects, target, Rejection(Program("monai-unet node", __version__), "", moment, text))
    except DicomIoError as error:
        shutil.rmtree(folder)
        return {**told, "unnamed": [*named, *unnamed], "why": str(error)}
    return {**told, "named": named, "digest": digest_of(folder)}


def main() -> None:
    """Serves a node until it is gone."""
    site = read_site(Path(sys.argv[1]))
    serve(lambda: (partial(answer, site), {}))


if __name__ == "__main__":
    main()
