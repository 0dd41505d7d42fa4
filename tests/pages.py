"""Documentation pages as fenced blocks, and what runs them: every command and snippet that a reader may copy.

A block without a language is commands, ``python`` is a snippet, ``yaml`` settings, ``text`` the output of the block
before it. On the line before a fence, ``<!-- not run: reason -->`` excuses the block, and
``<!-- run with: train --set a=1; probe --seed 2 -->`` adds flags to the commands it names, so that they end within
seconds on small data.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import commands
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
LANGUAGES = ("", "python", "yaml", "text")
_REMARK = re.compile(r"^<!-- (not run|run with): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    """Number of the line of its opening fence."""
    language: str
    """Word after the fence; empty for commands."""
    text: str
    """Lines between the fences."""
    excuse: str = ""
    """Reason why it is not run."""
    flags: tuple[tuple[str, ...], ...] = ()
    """Words of a command of `canopy`, and the flags that the test adds to it."""

    @property
    def commands(self) -> Iterator[list[str]]:
        """Words of each command line: continued lines joined, comments dropped, the test's flags added."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                for added in self.flags:
                    name = list(takewhile(lambda word: not word.startswith("-"), added))
                    if words[: len(name) + 1] == ["canopy", *name]:
                        words += added[len(name) :]
                yield words


def read_blocks(markdown: str) -> list[Block]:
    """Read the fenced blocks of a page, in order.

    Raises:
        ValueError: A fence stays open.
    """
    blocks: list[Block] = []
    lines = markdown.splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        remark = _REMARK.match(lines[opened - 1]) if opened else None
        kind, text = (remark[1], remark[2]) if remark else ("", "")
        blocks.append(
            Block(
                line=opened + 1,
                language=lines[opened][3:].strip(),
                text="\n".join(lines[opened + 1 : number]),
                excuse=text if kind == "not run" else "",
                flags=tuple(tuple(shlex.split(part)) for part in text.split(";")) if kind == "run with" else (),
            )
        )
        opened = None
    if opened is not None:
        raise ValueError(f"the fence on line {opened + 1} stays open")
    return blocks


@dataclass
class Reader:
    """Someone who runs a page's blocks from the top, in one folder."""

    folder: Path
    """Working folder."""
    output: str = ""
    """Text that the last block of commands wrote."""
    names: dict[str, object] = field(default_factory=dict)
    """Names that the page's snippets have assigned."""

    def run(self, block: Block) -> None:
        """Run a block; an assertion fails where it does."""
        assert block.language in LANGUAGES, f"line {block.line}: language {block.language!r}: one of {LANGUAGES}"
        if block.excuse:
            return
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), f"line {block.line}: no settings"
        elif block.language == "text":
            missing = [line for line in block.text.splitlines() if line not in self.output.splitlines()]
            assert not missing, f"line {block.line}: {missing} not in the output:\n{self.output}"
        elif block.language == "python":
            self._run_snippet(block)
        else:
            self.output = "".join(self._run_command(block, words) for words in block.commands)

    def _run_snippet(self, block: Block) -> None:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            # Lines are numbered as on the page, so that a traceback points there.
            exec(compile("\n" * block.line + block.text, "page", "exec"), self.names)
        finally:
            os.chdir(before)

    def _run_command(self, block: Block, words: list[str]) -> str:
        words = list(self._expanded(words))
        if words[0] == ".":  # the shell of this test runs in the environment already
            assert words == [".", ".venv/bin/activate"], f"line {block.line}: {words}"
            return ""
        if words[0] == "canopy":
            ended = commands.start(*words[1:], folder=self.folder).wait(600)
            code, output = ended.returncode, ended.stderr + ended.stdout
        else:
            if words[0] == "make":  # what is installed is not this test's matter
                stamps = ["-o", ".venv/.installed", "-o", ".venv/.demo"]
                words = ["make", "-C", str(REPOSITORY), *stamps, *words[1:]]
            elif words[0] == "python":
                words = [sys.executable, *words[1:]]
            done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
            code, output = done.returncode, done.stderr + done.stdout
        assert code == 0, f"line {block.line}: {shlex.join(words)} ended with {code}:\n{output[-3000:]}"
        return output

    def _expanded(self, words: list[str]) -> Iterator[str]:
        """Expand patterns as a shell does."""
        for word in words:
            # A pattern has no blank; a word with one was quoted.
            matches = self.folder.glob(word) if "*" in word and " " not in word else ()
            yield from sorted(str(path.relative_to(self.folder)) for path in matches) or [word]
