"""Do the tests of two revisions find the same faults? Mutants of the product, drawn at random, against tests.

    python tools/mutants.py draw TREE > mutants.json                   60 mutants of a checkout, by a seed
    python tools/mutants.py probe TREE mutants.json                    changes the checkout so that each place notes who ran it
    (make test in the changed checkout, with --junitxml, then git checkout .)
    python tools/mutants.py run TREE mutants.json JUNIT HITS > killed.json
    python tools/mutants.py compare before.json after.json

A mutant is run against the tests whose run touched it, quick files first, until one fails or three minutes are over. What a
child process touches counts for all tests of the file whose test started it: a fixture may have.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

SEED, NUMBER, PATIENCE_S = 65, 60, 180.0
PRODUCT = ("dicom_io", "monai_unet_app")

PROBE = '''
import os, sys
_seen = set()
def hit(place):
    """Notes which test ran a place; None, so that `hit(n) or expression` is the expression."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if (place, test) not in _seen:
        _seen.add((place, test))
        own = "own" if "_pytest" in sys.modules else "child"
        with open({folder!r} + "/" + str(os.getpid()), "a") as file:
            file.write("%d\\t%s\\t%s\\n" % (place, own, test))
'''

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr}


def mutated(node: ast.AST) -> ast.expr | None:
    """The expression with one fault; None where this kind of node gets none."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            return ast.Compare(node.left, [COMPARED[type(op)]()], node.comparators)
        case ast.BoolOp(op=op):
            return ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), node.values)
        case ast.BinOp(op=op) if type(op) in COMPUTED and not isinstance(node.left, (ast.Constant, ast.JoinedStr)):
            return ast.BinOp(node.left, COMPUTED[type(op)](), node.right)
        case ast.UnaryOp(op=ast.Not()):
            return node.operand
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            return node.operand
        case ast.IfExp():
            return ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            return ast.Constant(value + 1)
    return None


def places(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions inside of functions, without annotations, defaults, decorators, docstrings and formatted texts."""
    begun: list[tuple[ast.AST, bool]] = [(tree, False)]
    while begun:
        node, inside = begun.pop()
        if inside and mutated(node) is not None:
            yield node  # type: ignore[misc]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            begun += [(child, True) for child in node.body]
        elif isinstance(node, ast.AnnAssign):
            begun += [(node.value, inside)] if node.value else []
        elif not isinstance(node, (ast.JoinedStr, ast.Lambda, ast.match_case)):
            begun += [(child, inside) for child in ast.iter_child_nodes(node)]


def replaced(source: str, mutant: dict, text: str) -> str:
    """The source with the expression of a mutant replaced."""
    lines = source.encode().splitlines(keepends=True)
    (row, column), (last, end) = mutant["begin"], mutant["end"]
    before = b"".join(lines[: row - 1]) + lines[row - 1][:column]
    after = lines[last - 1][end:] + b"".join(lines[last:])
    return (before + text.encode() + after).decode()


def draw(root: Path) -> list[dict]:
    """Mutants of all folders: one of each folder in turn, in a random order, until there are enough."""
    by_folder = defaultdict(list)
    for path in sorted(path for name in PRODUCT for path in (root / name).rglob("*.py")):
        where = path.relative_to(root)
        source = path.read_text("utf-8")
        for node in places(ast.parse(source)):
            by_folder["/".join(where.parts[:-1][:2])].append((where, source, node))
    chance = random.Random(SEED)
    weights = {folder: len(found) for folder, found in sorted(by_folder.items())}
    folders = [*weights, *chance.choices([*weights], [*weights.values()], k=NUMBER - len(weights))]
    drawn = []
    for folder in sorted(folders):
        found = by_folder[folder]
        where, source, node = found.pop(chance.randrange(len(found)))
        new = mutated(node)
        assert new is not None
        drawn.append(
            {
                "file": str(where), "begin": [node.lineno, node.col_offset], "end": [node.end_lineno, node.end_col_offset],
                "old": ast.get_source_segment(source, node), "new": ast.unparse(ast.fix_missing_locations(new)),
            }
        )  # fmt: skip
    return drawn


def located(root: Path, mutant: dict) -> dict:
    """The mutant where its expression stands in this checkout: the nearest same text of the same file."""
    source = (root / mutant["file"]).read_text("utf-8")
    same = [node for node in places(ast.parse(source)) if ast.get_source_segment(source, node) == mutant["old"]]
    if not same:
        raise SystemExit(f"{mutant['file']}: no {mutant['old']!r} any more")
    line, column = mutant["begin"]
    node = min(same, key=lambda one: (abs(one.lineno - line), abs(one.col_offset - column)))
    return {
        **mutant, "begin": [node.lineno, node.col_offset], "end": [node.end_lineno, node.end_col_offset],
    }  # fmt: skip


def probe(root: Path, mutants: list[dict], hits: Path) -> None:
    """Changes the checkout: each place notes who runs it, by a module in the packages of its .venv."""
    hits.mkdir(parents=True)
    by_file = defaultdict(list)
    for number, mutant in enumerate(mutants):
        by_file[mutant["file"]].append((located(root, mutant), number))
    for file, own in by_file.items():
        source = (root / file).read_text("utf-8")
        for mutant, number in sorted(own, key=lambda one: one[0]["begin"], reverse=True):
            source = replaced(source, mutant, f'(__import__("mutant_probe").hit({number}) or ({mutant["old"]}))')
        ast.parse(source)
        (root / file).write_text(source, "utf-8")
    library = Path(sysconfig.get_path("purelib", vars={"base": str(root / ".venv")}))
    (library / "mutant_probe.py").write_text(PROBE.format(folder=str(hits)))


def seconds_of(junit: Path) -> dict[str, float]:
    """Test id -> seconds."""
    found = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        module, name = case.attrib["classname"].replace(".", "/") + ".py", case.attrib["name"]
        found[f"{module}::{name}"] = float(case.attrib["time"])
    return found


def tests_of(hits: Path, seconds: dict[str, float]) -> dict[int, list[str]]:
    """Place -> tests that ran it, files of quick tests first."""
    by_place = defaultdict(set)
    for file in hits.iterdir():
        for line in file.read_text().splitlines():
            place, whose, test = line.split("\t")
            own = (
                {test} if whose == "own" else {one for one in seconds if one.startswith(test.partition("::")[0] + "::")}
            )
            by_place[int(place)] |= own & set(seconds)
    ordered = {}
    for place, tests in by_place.items():
        files = defaultdict(list)
        for test in seconds:
            if test in tests:
                files[test.partition("::")[0]].append(test)
        pace = {file: sum(seconds[one] for one in own) / len(own) for file, own in files.items()}
        ordered[place] = [one for file in sorted(files, key=lambda name: pace[name]) for one in files[file]]
    return ordered


def run(root: Path, mutants: list[dict], tests: dict[int, list[str]], only: list[int]) -> Iterator[dict]:
    """What became of each mutant."""
    for number in only:
        mutant, chosen = located(root, mutants[number]), tests.get(number, [])
        answer = {**mutants[number], "number": number, "tests": len(chosen), "by": "", "killed": False}
        path, begin = root / mutant["file"], time.monotonic()
        source = path.read_text("utf-8")
        if chosen:
            path.write_text(replaced(source, mutant, f"({mutant['new']})"), "utf-8")
            listed = root / "chosen_tests.txt"
            listed.write_text("\n".join(chosen))
            words = [root / ".venv/bin/python", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"@{listed}"]
            try:
                done = subprocess.run(
                    words, cwd=root, capture_output=True, text=True, timeout=PATIENCE_S,
                    env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
                )  # fmt: skip
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                answer |= {
                    "killed": done.returncode != 0,
                    "by": failed[0][:200] if failed else f"exit {done.returncode}",
                }
            except subprocess.TimeoutExpired:
                answer["by"] = f"no failure in {PATIENCE_S:g} s"
            finally:
                path.write_text(source, "utf-8")
                listed.unlink()
        yield answer | {"seconds": round(time.monotonic() - begin)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["draw", "probe", "run", "compare"])
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--only", help="numbers of mutants, as 0:30")
    words = parser.parse_args()
    if words.verb == "draw":
        print(json.dumps(draw(words.places[0]), indent=1))
    elif words.verb == "probe":
        root, drawn, hits = words.places
        probe(root.resolve(), json.loads(drawn.read_text()), hits.resolve())
    elif words.verb == "run":
        root, drawn, junit, hits = words.places
        mutants = json.loads(drawn.read_text())
        only = (
            range(len(mutants))[slice(*(int(n) for n in words.only.split(":")))] if words.only else range(len(mutants))
        )
        for answer in run(root.resolve(), mutants, tests_of(hits, seconds_of(junit)), list(only)):
            print(json.dumps(answer), flush=True)
    else:
        before, after = ({one["number"]: one for one in map(json.loads, path.open())} for path in words.places)
        print("| place | mutant | tests before / after | killed before | killed after |\n|---|---|---|---|---|")
        for number, old in sorted(before.items()):
            new, shown = after[number], f"`{old['old']}` -> `{old['new']}`".replace("|", "\\|").replace("\n", " ")
            verdicts = ["yes" if one["killed"] else "no" for one in (old, new)]
            print(
                f"| {old['file']}:{old['begin'][0]} | {shown} | {old['tests']} / {new['tests']} | {' | '.join(verdicts)} |"
            )
        killed = [sum(one["killed"] for one in own.values()) for own in (before, after)]
        print(f"\nkilled before {killed[0]}, after {killed[1]} of {len(before)}")
        sys.exit(0 if killed[1] >= killed[0] - 1 else 1)


if __name__ == "__main__":
    main()
