"""Where the time of the tests goes: minutes by suite and folder, and the slowest items.

    python tools/test_minutes.py build/tests        the folder with the reports (JUnit XML) of `make test` and the other suites

Seconds are those of the items, with their fixtures; several processes run items at the same time.
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

SHOWN = 30


def main(folder: Path) -> None:
    """Prints both tables."""
    rows, items = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    numbers = Counter[tuple[str, str]]()
    for report in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(report).iter("testcase"):
            *folders, file = case.attrib["classname"].split(".")
            place = report.stem, "/".join([*folders, f"{file}.py"] if len(folders) < 2 else folders[:2])
            rows[place] += float(case.attrib["time"])
            numbers[place] += 1
            items[report.stem, f"{'/'.join([*folders, file])}.py::{case.attrib['name']}"] += float(case.attrib["time"])
    if not rows:
        sys.exit(f"{folder} holds no report; run make test before")
    print("minutes of items by suite and folder:")
    for suite in dict.fromkeys(suite for suite, _ in sorted(rows)):
        own = {place: seconds for place, seconds in rows.most_common() if place[0] == suite}
        print(f"{sum(own.values()) / 60:7.1f}  {sum(numbers[place] for place in own):5d} items  {suite}")
        small = [place for place, seconds in own.items() if seconds < 6]
        for place, seconds in own.items():
            if place not in small:
                print(f"  {seconds / 60:7.1f}  {numbers[place]:5d} items  {place[1]}")
        if small:
            seconds, number = sum(own[place] for place in small), sum(numbers[place] for place in small)
            print(f"  {seconds / 60:7.1f}  {number:5d} items  in {len(small)} more")
    print(f"the {SHOWN} slowest items, in seconds:")
    for (suite, item), seconds in items.most_common(SHOWN):
        print(f"{seconds:7.1f}  {suite}  {item}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
