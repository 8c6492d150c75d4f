"""Which readers get which hazardous series right, refuse it, or get it wrong, and do they say so?

    python benchmarks/hazards.py [--data DIR] [--only WORD] [--json FILE]
    pip install --target PEERS --no-deps dicom2nifti dcm2niix python-gdcm
    python benchmarks/hazards.py --peers PEERS

The cases are those of tests/hazards.py, and the real series below DIR (`dicom_series/`, beside the repository by default)
where it is there. Truth is what each phantom was written with, or each slice's own header: value and place of every
voxel, or of five lopsided points a slice. Each reader runs in a process of its own with a time limit for each case; one
that is not installed is absent. PEERS is a folder of further packages for the other readers only (the extra `peers`
installs the same into the environment, and with it a decoder that pydicom would then use in ours too).

Prints a line for each case and a sum for each reader. Exit code 1 if ours is wrong anywhere. Two things to know: a reader
that gives back one of two series, or of two times, counts as right; dcm2niix prefers the private scale of Philips' files to
their rescale, a choice of its own that counts as wrong here.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path

from hazard_readers import READERS, REPOSITORY, Reader
from hazard_truth import Verdict  # of tests/, which hazard_readers puts first on the path
from hazards import HAZARDS, Hazard, real_series

LEGEND = """\
ok right   E refused   E! refused, though it can be read   X crashed or no end
W wrong, with a warning   W(s) wrong, without any warning   - not installed"""
WIDTH = 7
STARTUP_S = 240.0

Row = dict[str, Verdict]


def main() -> int:
    """Runs every reader over every case; 1 if ours gave a wrong volume."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "dicom_series")
    parser.add_argument("--peers", type=Path, help="folder of packages for the other readers")
    parser.add_argument("--only", default="", help="cases whose name holds this word")
    parser.add_argument("--json", type=Path, help="file for the verdicts with their texts")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="for each case and reader")
    options = parser.parse_args()
    hazards = [*HAZARDS, *(real_series(options.data) if options.data.is_dir() else [])]
    hazards = [one for one in hazards if options.only in one.name and (one.needs is None or one.needs.is_file())]
    with tempfile.TemporaryDirectory() as scratch:
        cases = Path(scratch, "cases")
        build(hazards, cases)
        verdicts = {reader.code: run(reader, cases, len(hazards), options) for reader in READERS}
    rows = [{code: column[number] for code, column in verdicts.items()} for number in range(len(hazards))]
    print_table(hazards, rows, options.peers)
    print_sums(hazards, rows)
    if options.json:
        write_json(options.json, hazards, rows, options.peers)
    return int(any(row["ours"].kind == "WRONG" for row in rows))


def build(hazards: Sequence[Hazard], cases: Path) -> None:
    """Writes `<number>/` and `<number>.pickle` for each case."""
    cases.mkdir()
    HAZARDS[0].build(cases / "plain")
    for number, hazard in enumerate(hazards):
        hazard.build(cases / str(number))
        (cases / f"{number}.pickle").write_bytes(pickle.dumps(tuple(hazard.truths())))


def run(reader: Reader, cases: Path, count: int, options: argparse.Namespace) -> dict[int, Verdict]:
    """The verdicts of one reader by number of the case; starts its process anew after each crash."""
    answers = cases.parent / f"{reader.code}.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    if options.peers and reader.code != "ours":
        environment["PYTHONPATH"] = str(options.peers.resolve())
    command = [
        sys.executable,
        str(Path(__file__).with_name("hazard_readers.py")),
        reader.code,
        str(cases),
        str(answers),
    ]
    found: dict[int, Verdict] = {}
    while len(found) < count:
        ended = _process(command, environment, answers, options.timeout_s)
        before = len(found)
        found = _answers(answers, ended)
        if len(found) == before:
            raise SystemExit(f"the process of {reader.name} gives no answer: {ended}")
    return found


def _process(command: Sequence[str], environment: dict[str, str], answers: Path, timeout_s: float) -> str:
    """Runs the reader until its process ends or adds no answer for too long; says how it ended."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen = answers.stat().st_size if answers.exists() else 0
    since = time.monotonic() + STARTUP_S  # imports take their time
    while True:
        try:
            _, errors = process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            size = answers.stat().st_size if answers.exists() else 0
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                os.killpg(process.pid, signal.SIGKILL)  # with the programs that it started
                process.communicate()
                return f"no end within {timeout_s:.0f} s"
        else:
            return f"its process ended with {process.returncode}: {errors.strip()[-200:]}"


def _answers(answers: Path, ended: str) -> dict[int, Verdict]:
    """What the reader wrote; a case that it began and did not finish is a crash."""
    lines = [json.loads(line) for line in answers.read_text().splitlines()] if answers.exists() else []
    found = {line.pop("case"): line for line in lines}
    unfinished = [case for case, answer in found.items() if not answer]
    with answers.open("a") as file:
        for case in unfinished:
            found[case] = asdict(Verdict("crashed", ended))
            file.write(json.dumps({"case": case, **found[case]}) + "\n")
    return {case: Verdict(**answer) for case, answer in found.items()}


def mark(hazard: Hazard, verdict: Verdict) -> str:
    """The verdict in at most four characters."""
    marks = {"right": "ok", "crashed": "X", "absent": "-", "refused": "E" if hazard.refusal else "E!"}
    return marks.get(verdict.kind) or ("W" if verdict.warned else "W(s)")


def version(reader: Reader, peers: Path | None) -> str:
    """Version of its distribution, or "absent"."""
    folders = [*([str(peers)] if peers else []), *sys.path]
    found = next(iter(distributions(name=reader.distribution, path=folders)), None)
    return found.version if found else "absent"


def print_table(hazards: Sequence[Hazard], rows: Sequence[Row], peers: Path | None) -> None:
    """Cases down, readers across, 79 columns wide."""
    for reader in READERS:
        print(f"{reader.code:{WIDTH}}{reader.name}, {version(reader, peers)}")
    print(f"\n{LEGEND}\n\n{'':30}" + "".join(f"{reader.code:{WIDTH}}" for reader in READERS))
    for hazard, row in zip(hazards, rows, strict=True):
        marks = "".join(f"{mark(hazard, row[reader.code]):{WIDTH}}" for reader in READERS)
        print(f"{hazard.name:30}{marks}".rstrip())


def print_sums(hazards: Sequence[Hazard], rows: Sequence[Row]) -> None:
    """How many cases each reader gets right, refuses, and so on."""
    kinds = {"right": ("ok",), "refused": ("E",), "E!": ("E!",), "crashed": ("X",), "W": ("W",), "W(s)": ("W(s)",)}
    print(f"\n{f'of {len(hazards)} cases':30}" + "".join(f"{kind:9}" for kind in kinds))
    for reader in READERS:
        marks = [mark(hazard, row[reader.code]) for hazard, row in zip(hazards, rows, strict=True)]
        counts = "".join(f"{sum(one in codes for one in marks):<9}" for codes in kinds.values())
        print(f"{reader.code:30}{'absent' if set(marks) == {'-'} else counts}".rstrip())


def write_json(path: Path, hazards: Sequence[Hazard], rows: Sequence[Row], peers: Path | None) -> None:
    """The verdicts with their texts, for whoever asks why."""
    cases = [
        {
            "case": hazard.name,
            "expected": "right or refused" if hazard.refusal else "right",
            "verdicts": {
                code: {"mark": mark(hazard, one), "kind": one.kind, "warned": one.warned, "text": one.text}
                for code, one in row.items()
            },
        }
        for hazard, row in zip(hazards, rows, strict=True)
    ]
    readers = {reader.code: {"name": reader.name, "version": version(reader, peers)} for reader in READERS}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"readers": readers, "cases": cases}, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
