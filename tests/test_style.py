"""Habits that a reader notices at once: names, English, sizes, and what no file may contain.

CONTRIBUTING.md states the rules; each test lists the places that break one, as path:line.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("canopy", "pretrain", "tiles")
CODE = (*PACKAGES, "benchmarks", "recipes", "samples")

VAGUE = set(re.findall(r"\w+", """
    apart asked at away begun beside drawn found given held here kept known made mine ours place places seen theirs told
    wanted
"""))  # fmt: skip
VAGUE_ENDINGS = VAGUE - {"at", "given", "held", "here", "kept", "known", "place", "places"}
STORED = {"made", "store.made"}
"""Settings that published recipes name: they stay as they are stored."""

LEFT_WORDS = re.compile(
    r"\b(mend(s|ed|ing)?|foretell(s|ing)?|foretold|beside|told|tells?|telling|whence|anew|alike|likewise|nobody"
    r"|of so many|a hair|what (is|was) made of)\b",
    re.IGNORECASE,
)
HOLDS = re.compile(r"\bholds\b(?! (the|a|this|its|no|one) lock\b)")
"""A process holds a lock; a file contains, has or lists what is in it."""

BAD_BEGINNING = re.compile(r"^(Of |Likewise\b|As of\b)")
MAX_FUNCTION, MAX_FILE = 60, 500
"""Most lines of a function, its docstring not counted, and of a file."""


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the project that exist, as git lists them; those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return tuple(path for name in listed.splitlines() if (path := REPOSITORY / name).is_file())


@cache
def modules(*folders: str) -> tuple[tuple[str, str, ast.Module], ...]:
    """Path from the repository, text and syntax tree of each Python file below the folders."""
    files = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    texts = [(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8")) for path in files]
    return tuple((name, text, ast.parse(text)) for name, text in texts)


def assigned_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of all that a module assigns, defines or takes as an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def is_vague(name: str) -> bool:
    """Return whether a name says nothing of the thing that it names."""
    bare = name.strip("_").lower()
    return bare not in STORED and (bare in VAGUE or bare.rpartition("_")[2] in VAGUE_ENDINGS)


def docstring_lines(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of each line of docstrings, those under fields included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number, line in enumerate(node.value.value.splitlines()):
                yield node.lineno + number, line


def string_lines(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of strings that read as prose: docstrings, help texts, messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def comment_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of comments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def prose_lines(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield the line number and the text of a page's lines outside fenced blocks, less what stands in backquotes."""
    fenced = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`", "", line)


def left_word(text: str) -> str | None:
    """Return the first word of a line that the project no longer uses."""
    match = LEFT_WORDS.search(text) or HOLDS.search(text)
    return match[0] if match else None


def check_none(faults: list[str]) -> None:
    """Fail with the list of faults, if there are any."""
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def test_names_say_the_thing() -> None:
    check_none(
        [
            f"{path}:{line}: {name}"
            for path, _, tree in modules(*CODE)
            for line, name in sorted(set(assigned_names(tree)))
            if is_vague(name)
        ]
    )


def test_code_speaks_plain_english() -> None:
    check_none(
        [
            f"{path}:{line}: {word!r} in {text.strip()[:80]}"
            for path, source, tree in modules(*CODE)
            for line, text in sorted({*string_lines(tree), *comment_lines(source)})
            if (word := left_word(text))
        ]
    )


def test_pages_speak_plain_english() -> None:
    pages = [p for p in tracked() if p.suffix in (".md", ".yaml", ".sh") and "tests/data" not in p.as_posix()]
    check_none(
        [
            f"{page.relative_to(REPOSITORY)}:{line}: {word!r} in {text.strip()[:80]}"
            for page in pages
            for line, text in prose_lines(page.read_text(encoding="utf-8"))
            if (word := left_word(text))
        ]
    )


def test_texts_of_arguments_stand_alone() -> None:
    faults = []
    for path, _, tree in modules(*CODE):
        for line, text in docstring_lines(tree):
            argument = re.match(r"^\s+\*{0,2}\w+: (.*)", text)
            if BAD_BEGINNING.match(argument[1] if argument else text.strip()):
                faults.append(f"{path}:{line}: {text.strip()}")
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for keyword in call.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg == "help" and isinstance(value, str) and BAD_BEGINNING.match(value):
                    faults.append(f"{path}:{keyword.value.lineno}: {value}")
    check_none(faults)


def test_no_file_names_a_folder_outside_the_project() -> None:
    """Users name their own folder, and tests CANOPY_TEST_DATA; conftest.py alone knows a default."""
    outside = re.compile(r"\.\./" + r"shared|\bshared/" + r"data\b|[\"']shared[\"'] / [\"']data[\"']")
    faults = []
    for path in tracked():
        if path == REPOSITORY / "tests" / "conftest.py" or b"\0" in path.read_bytes()[:8192]:
            continue
        for line, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if outside.search(text):
                faults.append(f"{path.relative_to(REPOSITORY)}:{line}: {text.strip()}")
    check_none(faults)


def test_locks_are_portable_and_results_are_returned() -> None:
    faults = []
    for path, _, tree in modules(*PACKAGES):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "fcntl" in names or (isinstance(node, ast.ImportFrom) and node.module == "fcntl"):
                faults.append(f"{path}:{node.lineno}: fcntl is absent on Windows, use tiles.locks")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                faults.append(f"{path}:{node.lineno}: print in the library, return the result or log it")
    check_none(faults)


def test_functions_and_files_are_short() -> None:
    faults = []
    for path, text, tree in modules(*PACKAGES):
        if (lines := len(text.splitlines())) > MAX_FILE:
            faults.append(f"{path}: {lines} lines, {MAX_FILE} allowed")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = len((ast.get_docstring(node, clean=False) or "").splitlines())
                length = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring
                if length > MAX_FUNCTION:
                    faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION} allowed")
    check_none(faults)
