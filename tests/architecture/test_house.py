"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from conftest import REPOSITORY

PACKAGES = ("monai_unet_app", "dicom_io")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
SCHEMAS = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.schema.json"))
MOST_LINES = 500
MOST_EXAMPLE_BYTES = 25 * 1024 * 1024
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home)/\w")


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Every node of a tree; to walk all sources takes longer than what is asked of their nodes."""
    return tuple(ast.walk(tree))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("this is no git checkout: there is no list of tracked files")
    return [REPOSITORY / file for file in listing.stdout.decode().split("\0") if file]


def text_of(path: Path) -> str | None:
    content = path.read_bytes() if path.is_file() else b"\0"
    return None if b"\0" in content[:8192] else content.decode("utf-8", errors="replace")


def test_no_child_process_imports_from_the_current_folder() -> None:
    """Python is started with -P or -I, so that a numpy.py beside somebody's images is never run."""
    started = {
        f"{name(path)}:{node.lineno}": ast.unparse(node.elts[1])
        for path in SOURCES
        for node in nodes_of(tree_of(path))
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable"
    }
    mentions = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        for node in nodes_of(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    ]
    assert set(started.values()) <= {"'-P'", "'-I'"}, started
    beside = [place for place in mentions if place not in started and not place.startswith("dicom_io/validators.py")]
    assert beside == []  # each one is the first word of such a list


def test_only_the_command_line_prints() -> None:
    found = [
        f"{name(path)}:{node.lineno}"
        for path in SOURCES
        if not name(path).startswith("monai_unet_app/cli/")
        for node in nodes_of(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_no_tracked_text_names_a_folder_of_somebody_s_machine() -> None:
    texts = {name(path): text_of(path) for path in tracked_files()}
    found = [
        f"{file}: {match.group()}" for file, text in texts.items() if text for match in MACHINE_PATH.finditer(text)
    ]
    assert found == []


def test_the_search_for_machine_paths_finds_one() -> None:
    assert MACHINE_PATH.search("open('/" + "home/someone/data')")
    assert not MACHINE_PATH.search("see docs/work/notes and https://example.org/home/page")


def test_dicom_io_can_be_used_without_torch_monai_or_the_app() -> None:
    modules = [name(path)[:-3].replace("/", ".") for path in SOURCES if name(path).startswith("dicom_io/")]
    blocked = ["torch", "monai", "ignite", "monai_unet_app"]
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"  # None in sys.modules makes an import fail
        f"for module in {modules!r}: importlib.import_module(module.removesuffix('.__init__'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_examples_are_small_and_say_under_which_licence_they_come() -> None:
    folder = REPOSITORY / "examples"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MOST_EXAMPLE_BYTES
    data_sets = [path for path in folder.iterdir() if path.is_dir()]
    assert data_sets
    for data_set in data_sets:
        assert "CC" in (data_set / "LICENSE").read_text() or "Creative Commons" in (data_set / "LICENSE").read_text()
        assert "Decathlon" in (data_set / "README.md").read_text()


@pytest.mark.parametrize("path", SCHEMAS, ids=name)
def test_every_schema_is_valid_and_fixes_its_version(path: Path) -> None:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    version = jsonschema.Draft202012Validator(schema["properties"]["schema_version"])
    assert any(version.is_valid(f"1.{minor}") for minor in range(10))
    assert not version.is_valid("2.0")
    if name(path).startswith("monai_unet_app/"):  # the segments' own schema reads dcmqi's files too, which carry none
        assert "schema_version" in schema["required"]


def test_there_are_schemas_for_every_kind_of_document() -> None:
    assert {path.name for path in SCHEMAS} >= {
        f"{kind}.schema.json" for kind in ("result", "metrics", "run", "segments", "splits")
    }


def test_no_module_is_two_rooms() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


ARRAYS = re.compile(r"\b(NDArray|ArrayLike|Tensor|Mask|Floats|MetaTensor)\b")
SHAPE = re.compile(r"[Ss]hape|\([\w*+ .]+,[^)]*\)|[Ss]calar")
UNIT = re.compile(
    r"\b(mm2?|mL|millilitres|px|pixels?|voxels?|seconds?|HU|nats|LPS|RAS|0 (to|or|and) \d+|boolean|numbers?|ind(ex|ices)"
    r"|values?|labels?|classes|probabilit\w+|logits?|log-odds|intensit\w+|grey|colours?|counts?|decisions|scores?|weights?|features?"
    r"|parts?|ratios?|fractions?|deviations?|bytes|bits?|unit)\b"
)


@cache
def docstrings_with_arrays() -> list[tuple[str, str]]:
    """Place and docstring of every public function that takes or gives an array."""
    found = []

    def visit(body: list[ast.stmt], file: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                visit(node.body, file)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                types = [part for part in (*(argument.annotation for argument in arguments), node.returns) if part]
                if any(ARRAYS.search(ast.unparse(part)) for part in types):
                    found.append((f"{file}:{node.lineno} {node.name}", ast.get_docstring(node) or ""))

    for path in SOURCES:
        visit(tree_of(path).body, name(path))
    return found


@pytest.mark.parametrize(("what", "pattern"), [("shape", SHAPE), ("unit", UNIT)])
def test_public_functions_of_arrays_say_shape_and_unit(what: str, pattern: re.Pattern[str]) -> None:
    docstrings = docstrings_with_arrays()
    assert len(docstrings) > 100
    silent = [place for place, text in docstrings if not pattern.search(text)]
    assert len(silent) <= 0.1 * len(docstrings), f"no {what}: {silent}"


def test_no_function_has_more_than_six_parameters_or_sixty_lines() -> None:
    long = []
    for path in SOURCES:
        for node in nodes_of(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                lines = (node.end_lineno or 0) - node.lineno + 1
                if len([n for n in names if n not in ("self", "cls")]) > 6 or lines > 60:
                    long.append(f"{name(path)}:{node.lineno} {node.name}")
    assert long == []


KINDS_OF_OUTPUT = ("monai_unet_app/metrics/outputs.py", "dicom_io/segmentation.py")
OTHER_MEANING = ("dicom_io/rtstruct/parse.py", "dicom_io/rtstruct/read.py")  # contours of CLOSEDPLANAR_XOR
ASKS_FOR_THE_LAYOUT = ("monai_unet_app/bundle.py",)  # sizes of parts add up where one map holds them
STANDS_ALONE = ("monai_unet_app/edge/segment.py",)  # runs where nothing of the project is
KIND = {"exclusive", "is_exclusive", "overlapping", "EXCLUSIVE", "OVERLAPPING", "COUNTED", "one_map"}


def conditions(tree: ast.AST) -> list[ast.expr]:
    """Every expression by which a branch is chosen, or that is an operand of a comparison, `and`, `or` or `not`."""
    found: list[ast.expr] = []
    for node in nodes_of(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            found.append(node.test)
        elif isinstance(node, ast.comprehension):
            found += node.ifs
        elif isinstance(node, ast.BoolOp):
            found += node.values
        elif isinstance(node, ast.Compare):
            found += [node.left, *node.comparators]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append(node.operand)
        elif isinstance(node, ast.Match):
            found.append(node.subject)
    return found


def asks_for_the_kind(tree: ast.AST) -> list[int]:
    """Lines of the conditions that name a kind of output."""
    return sorted(
        {
            node.lineno
            for condition in conditions(tree)
            for node in ast.walk(condition)
            if (isinstance(node, ast.Attribute) and node.attr in KIND)
            or (isinstance(node, ast.Name) and node.id in KIND)
            or (isinstance(node, ast.Constant) and node.value in {"exclusive", "overlapping", "counted"})
        }
    )


def test_kinds_of_output_are_told_apart_in_two_modules_only() -> None:
    asked = {name(path): lines for path in SOURCES if (lines := asks_for_the_kind(tree_of(path)))}
    assert set(asked) == {*KINDS_OF_OUTPUT, *OTHER_MEANING, *ASKS_FOR_THE_LAYOUT, *STANDS_ALONE}
    assert all(len(asked[file]) == 1 for file in ASKS_FOR_THE_LAYOUT)


@pytest.mark.parametrize(
    "source",
    [
        "labels[1:] if bundle.exclusive else labels",
        "kept = tidy or not outputs.one_map",
        "if outputs.name == 'overlapping': pass",
        "same = outputs is EXCLUSIVE",
        "cuts = [0.5 for row in rows if not is_exclusive(row)]",
    ],
)
def test_the_search_for_kinds_of_output_finds_them(source: str) -> None:
    assert asks_for_the_kind(ast.parse(source)) == [1]
    assert asks_for_the_kind(ast.parse("make(image, exclusive=bundle.outputs.one_map)")) == []
