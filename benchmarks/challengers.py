"""What does a challenger cost the champion, how fast is the way back, and when is one that is worse found?

    python benchmarks/challengers.py [--rounds 5] [--studies 12] [--only shadow|rollback|worse|better]

A node with the shipped hippocampus bundles in a registry; the studies are example cases as DICOM series, each of a patient of
its own. Results go to a store that counts every object and passes it on to Orthanc, where it is installed.

- shadow: rounds with and without a challenger in turns, studies coming at 60 % of what the node can do. The challenger has the
  network of the champion, so both take as long. The 95th percentile from complete to delivered may be 10 % longer, by the
  medians of the rounds; and no object of a shadow is sent.
- rollback: at the same pace, with half of the patients on the challenger's side; its results stop in the middle. The rollback
  may take 5 s; no object of the challenger starts afterwards, no study is without a result, and no object comes twice.
- worse: the 2D network for the 3D one, by a written reason. It must be rolled back within 60 studies.
- better: the 3D network for the 2D one, which it must outlive for as many studies.

Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from claims import judged
from node import archive, made_studies
from pydicom import dcmread

from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.net.instance_store import InstanceStore, Stored
from dicom_io.net.scp import Listen, Provider
from monai_unet_app.lifecycle.registry import open_registry
from monai_unet_app.service import slots
from monai_unet_app.service.models import ask_registry
from monai_unet_app.service.node import Node
from monai_unet_app.service.rows import Result
from monai_unet_app.service.site_file import read_site
from monai_unet_app.shipped import shipped

MOST_LONGER, MOST_ROLLBACK_S, MOST_STUDIES, LOAD = 1.1, 5.0, 60, 0.6
NONE = 1e-9  # a bound for what must not be
THREE_D, TWO_D = "hippocampus_mri_unet3d", "hippocampus_mri_unet2d"
SITE = """
[node]
folder = "node"
stable_s = 0.5
[registry]
folder = "registry"
[[rules]]
name = "hippocampus"
bundle = "registry:hippocampus@champion"
challenger = "registry:hippocampus@challenger"
canary = 1
most_slower = 10
match = {{Modality = "MR"}}
destinations = ["archive"]
hold_review = false
[destinations.archive]
host = "127.0.0.1"
port = {port}
ae_title = "PROXY"
"""


class Counting:
    """A store that notes when each object comes, and passes it on."""

    def __init__(self, folder: Path, to: str) -> None:
        """`to`: the archive."""
        self.came: list[tuple[float, str]] = []
        self._to, self._waiting = parse_destination(to), list[Path]()
        self._store = InstanceStore(folder, stored=self._stored)
        self.provider = Provider(self._store, Listen("PROXY", port=0))

    def _stored(self, stored: Stored) -> None:
        self.came.append((time.monotonic(), stored.sop_instance_uid))
        if stored.is_new:
            self._waiting.append(stored.path)

    def pass_on(self) -> int:
        """Sends what came to the archive; gives the number of objects."""
        outcomes = send(self._to, self._waiting)
        assert all(one.state == "sent" for one in outcomes)
        return len(outcomes)


def name(folder: Path, champion: str, challenger: str) -> None:
    """Gives the aliases to two of the three versions: "3D", "2D" or "3D again"."""
    numbers = {"3D": "1", "2D": "2", "3D again": "3"}
    with open_registry(folder / "registry") as registry:
        if not registry.models():
            again = Path(shutil.copytree(shipped("bundles") / THREE_D, folder / "again" / THREE_D))
            config = again / "configs/inference.yaml"
            config.write_text(config.read_text() + "# the same network as another version\n")
            for bundle in (THREE_D, TWO_D, again):
                registry.add(bundle, "hippocampus")
        for version, alias in ((champion, "champion"), (challenger, "challenger")):
            registry.promote("hippocampus", numbers[version], alias, "Bianchi^Eva", {}, "benchmark")  # type: ignore[arg-type]


@contextmanager
def running(folder: Path, port: int) -> Iterator[Node]:
    """A node that is ready."""
    path = folder / "site.toml"
    path.write_text(SITE.format(port=port))
    site = read_site(path)
    (folder / "node/models").mkdir(parents=True, exist_ok=True)
    ask_registry(site)
    with Node(replace(site, node=replace(site.node, port=0))) as node:
        wait(lambda: node.is_ready, 300)
        yield node


def wait(holds, seconds: float = 600.0) -> None:  # type: ignore[no-untyped-def]
    """Until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("it took too long")
        time.sleep(0.02)


def deliver(node: Node, studies: Sequence[Path], pause_s: float = 0.0) -> None:
    """Sends studies, one each so many seconds."""
    to = parse_destination(f"MONAIUNET@127.0.0.1:{node.provider.port}")
    begin = time.monotonic()
    for n, one in enumerate(studies):
        time.sleep(max(0.0, begin + n * pause_s - time.monotonic()))
        send(to, sorted(one.glob("*.dcm")))


def quiet(node: Node) -> bool:
    """Whether nothing waits, shadows included."""
    return only_champion(node) and slots.next_shadow(node.queue) is None


def only_champion(node: Node) -> bool:
    """Whether nothing is to be done but by a shadow, or by a reviewer."""
    return not node.queue.waiting().keys() - {"review"} and not node.queue.counts()["studies"].get("arriving")


def capacity_s(node: Node, studies: Sequence[Path]) -> float:
    """Seconds that a study takes when others wait behind it."""
    begin = time.monotonic()
    deliver(node, studies)
    wait(lambda: only_champion(node))
    return (time.monotonic() - begin) / len(studies)


def objects_of(node: Node, sha256: str) -> set[str]:
    """SOPInstanceUIDs of all that a bundle has made."""
    results = node.queue.select(Result, "SELECT * FROM results WHERE bundle = ?", sha256)
    files = [file for result in results for file in node.result_folder(result).rglob("*.dcm")]
    return {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files}


def numbers_of(node: Node, sha256: str) -> set[int]:
    """Numbers of the results that a bundle has made."""
    return set(node.queue.column("SELECT id FROM results WHERE bundle = ?", sha256))


def twice(counting: Counting) -> int:
    """How many objects came more than once."""
    return sum(count - 1 for count in Counter(uid for _, uid in counting.came).values())


def shadow(folder: Path, counting: Counting, options: argparse.Namespace) -> bool:
    """The champion's 95th percentile beside a shadow."""
    name(folder, "3D", "3D again")
    late: dict[bool, list[float]] = {True: [], False: []}
    with running(folder, counting.provider.port) as node:
        rounds, size = options.rounds, options.studies
        studies = iter(made_studies(folder / "in", (2 * rounds + 2) * size))
        known = node.folder / "models/resolved.json"
        both = json.loads(known.read_text())
        alone = {key: value for key, value in both.items() if key.endswith("champion")}
        known.write_text(json.dumps(alone))
        node.in_loop(node.challengers.assign_models)
        capacity_s(node, list(islice(studies, size)))
        each = capacity_s(node, list(islice(studies, size)))
        print(f"  {3600 / each:.0f} studies an hour; they come at {LOAD:.0%} of that")
        for number in range(2 * rounds):
            is_on = number % 2 == 0
            known.write_text(json.dumps(both if is_on else alone))
            node.in_loop(node.challengers.assign_models)
            before = len(node.durations.last["total"])
            deliver(node, list(islice(studies, size)), each / LOAD)
            wait(lambda: quiet(node))
            late[is_on].append(float(np.quantile(list(node.durations.last["total"])[before:], 0.95)))
        (compared,) = node.queue.column("SELECT count(*) FROM comparisons")
        shadows = len(objects_of(node, both["challenger of hippocampus"]["sha256"]) & {uid for _, uid in counting.came})
    on, off = float(np.median(late[True])), float(np.median(late[False]))
    print(f"  {compared} studies compared; 95 % with a shadow {on:.2f} s, without {off:.2f} s")
    print(f"  rounds with {np.round(late[True], 2).tolist()}, without {np.round(late[False], 2).tolist()}")
    return all(
        [
            judged("95th percentile, with / without", on / off, MOST_LONGER, at_most=True),
            judged("objects of a shadow, or twice", shadows + twice(counting), NONE, at_most=True),
        ]
    )


def rollback(folder: Path, counting: Counting, options: argparse.Namespace) -> bool:
    """The way back in the middle of a stream of studies."""
    name(folder, "3D", "3D again")
    with running(folder, counting.provider.port) as node:
        size = options.studies
        studies = made_studies(folder / "in", 4 * size)
        each = capacity_s(node, studies[:size])
        node.in_loop(lambda: node.challengers.set_share("hippocampus", 0.5, "Bianchi^Eva", "benchmark"))
        sending = threading.Thread(target=deliver, args=(node, studies[size:], each / LOAD))
        sending.start()
        challenger = slots.slots(node.queue)["hippocampus"].challenger
        wait(lambda: node.queue.counts()["results"].get("delivered", 0) >= 2 * size)
        wait(lambda: {task.result for task in node.senders.tasks()} & numbers_of(node, challenger))  # one is being sent
        begin = time.monotonic()
        done = node.in_loop(lambda: node.challengers.roll_back("hippocampus", "benchmark", "Bianchi^Eva"))
        ended = time.monotonic()
        sending.join()
        wait(lambda: quiet(node))
        theirs = objects_of(node, challenger)
        finished = {result.study for result in node.queue.results(("delivered",), 10_000)}
        accepted = {str(dcmread(next(one.glob("*.dcm"))).StudyInstanceUID) for one in studies}
    print(
        f"  {len(done.sent)} results of the challenger were sent before, {len(done.ended)} were ended and made by the champion"
    )
    return all(
        [
            judged("rollback, s", ended - begin, MOST_ROLLBACK_S, at_most=True),
            judged(
                "objects of the challenger afterwards",
                sum(uid in theirs and moment > ended for moment, uid in counting.came), NONE, at_most=True,
            ),
            judged("studies without a result", len(accepted - finished), NONE, at_most=True),
            judged("objects that came twice", twice(counting), NONE, at_most=True),
        ]
    )  # fmt: skip


def tried(folder: Path, counting: Counting, champion: str, challenger: str) -> tuple[int, str]:
    """After how many studies a challenger is rolled back, and why; all of `MOST_STUDIES` and nothing if it is not."""
    name(folder, champion, challenger)
    with running(folder, counting.provider.port) as node:
        node.in_loop(
            lambda: node.challengers.set_share("hippocampus", 0.5, "Bianchi^Eva", "to see whether it is found")
        )
        for number, one in enumerate(made_studies(folder / "in", MOST_STUDIES), start=1):
            deliver(node, [one])
            wait(lambda: quiet(node) and node.queue.counts()["studies"]["complete"] >= number)  # noqa: B023
            (state,) = node.challengers.state()
            if state["withdrawn"]:
                break
        print(
            f"  score {state['score']:.3g} after {state['studies']} studies: {state['withdrawn'] or 'not rolled back'}"
        )
        return state["studies"], state["withdrawn"]


def worse(folder: Path, counting: Counting, _: argparse.Namespace) -> bool:
    """The 2D network for the 3D one."""
    studies, why = tried(folder, counting, "3D", "2D")
    return judged("rolled back after studies", studies if why else MOST_STUDIES + 1, MOST_STUDIES, at_most=True)


def better(folder: Path, counting: Counting, _: argparse.Namespace) -> bool:
    """The 3D network for the 2D one."""
    studies, why = tried(folder, counting, "2D", "3D")
    return judged("studies that it outlives", 0 if why else studies, MOST_STUDIES)


PARTS = {"shadow": shadow, "rollback": rollback, "worse": worse, "better": better}


def main() -> int:
    """Runs the parts; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--studies", type=int, default=12)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    reached = []
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory() as scratch, archive(Path(scratch)) as (title, port):
            print(f"{part}; archive: {title}", flush=True)
            counting = Counting(Path(scratch) / "proxy", f"{title}@127.0.0.1:{port}")
            with counting.provider:
                reached.append(PARTS[part](Path(scratch), counting, options))
                print(f"  {counting.pass_on()} objects are in the archive", flush=True)
    return int(not all(reached))


if __name__ == "__main__":
    raise SystemExit(main())
