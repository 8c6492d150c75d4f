"""How much code there is: tokens and lines of each folder, without docstrings and comments.

    python tools/count.py [FOLDER ...]

Counted are tracked files: of Python the tokens that say something (names, numbers, strings, operators) and the lines that
hold one; of the `$` expressions in a bundle's YAML their Python tokens; of templates (planned configs, pages, cards) words and
marks.
Tests and benchmarks are counted only where they are named.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("dicom_io", "monai_unet_app", "bundles", "tools")
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
TEMPLATES = {".html", ".css", ".js", ".md", ".txt", ".yaml", ".json", ""}
NO_CODE = {"LICENSE-niivue.txt", "README.md", "hashed.txt", "requirements.txt"}
WORD = re.compile(r"\w+|[^\w\s]")


def main() -> None:
    """Prints a row for each folder below those that are asked for, and their sum."""
    totals: Counter[str] = Counter()
    print(f"{'folder':<40}{'files':>7}{'lines':>9}{'tokens':>9}")
    for folder in sys.argv[1:] or FOLDERS:
        for name, found in by_folder(folder).items():
            print(f"{name:<40}{found['files']:>7}{found['lines']:>9}{found['tokens']:>9}")
            totals += found
    print(f"{'sum':<40}{totals['files']:>7}{totals['lines']:>9}{totals['tokens']:>9}")


def by_folder(folder: str) -> dict[str, Counter[str]]:
    """Counts of the folders in a tracked folder, and of the files that lie in it directly."""
    counts: dict[str, Counter[str]] = {}
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=REPOSITORY, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = REPOSITORY / name
        if path.is_file() and (found := count(path)):
            parts = Path(name).relative_to(folder).parts
            counts.setdefault("/".join((folder, *parts[:-1][:1])), Counter()).update(files=1, **found)
    return dict(sorted(counts.items()))


def count(path: Path) -> dict[str, int]:
    """Tokens and, for Python, lines of a file; nothing for what is no code."""
    if path.suffix == ".py":
        return of_python(path.read_text(encoding="utf-8"))
    if "templates" in path.parts or path.parent.name in ("static", "networks"):
        return {"tokens": of_template(path)} if path.suffix in TEMPLATES and path.name not in NO_CODE else {}
    if path.suffix == ".yaml":
        return {"tokens": sum(map(of_expression, expressions(yaml.safe_load(path.read_text(encoding="utf-8")))))}
    return {}


def of_python(text: str) -> dict[str, int]:
    """Tokens that say something, and the lines that hold one."""
    strings = docstrings(ast.parse(text))
    told = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in SILENT and token.start not in strings
    ]
    lines = {line for token in told for line in range(token.start[0], token.end[0] + 1)}
    return {"tokens": len(told), "lines": len(lines)}


def docstrings(tree: ast.AST) -> set[tuple[int, int]]:
    """Line and column where strings begin that are statements of their own."""
    return {
        (node.lineno, node.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def expressions(content: object) -> list[str]:
    """The `$` expressions in a YAML."""
    if isinstance(content, dict):
        return [text for value in content.values() for text in expressions(value)]
    if isinstance(content, list):
        return [text for value in content for text in expressions(value)]
    return [content[1:]] if isinstance(content, str) and content.startswith("$") else []


def of_expression(text: str) -> int:
    """Tokens of an expression, in which a reference (`@id::0`) is one."""
    python = re.sub(r"@\w+(::\w+)*", "reference", text)
    return of_python(python.strip())["tokens"]


def of_template(path: Path) -> int:
    """Words and marks, without comments."""
    text = path.read_text(encoding="utf-8")
    for comment in (r"(?s)<!--.*?-->", r"(?s)/\*.*?\*/", r"(?s)\{#.*?#\}"):
        text = re.sub(comment, "", text)
    if path.suffix == ".yaml":
        text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    return len(WORD.findall(text))


if __name__ == "__main__":
    main()
