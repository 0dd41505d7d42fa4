"""Pages are taken apart into blocks as their readers see them."""

import re
from pathlib import Path

import pytest
from pages import PAGES, REPOSITORY, Reader, read_blocks

PAGE = """# A page

```
canopy info a.tif    # says what it is
canopy chm *.laz \\
    --out b.tif
```

<!-- not run: needs a publisher's file -->
```
curl -O https://example.org/a.pth
```
<!-- run with: gedi read --overwrite; train --set loop.steps=2 -->
```
canopy train a.yaml
canopy gedi read b.h5
```

```python
answer = 6 * 7
```
"""


def test_blocks_have_language_line_excuse_and_flags() -> None:
    commands, excused, shortened, snippet = read_blocks(PAGE)
    assert list(commands.commands) == [["canopy", "info", "a.tif"], ["canopy", "chm", "*.laz", "--out", "b.tif"]]
    assert (commands.line, commands.language, commands.excuse) == (3, "", "")
    assert excused.excuse == "needs a publisher's file"
    assert list(shortened.commands) == [
        ["canopy", "train", "a.yaml", "--set", "loop.steps=2"],
        ["canopy", "gedi", "read", "b.h5", "--overwrite"],
    ]
    assert (snippet.language, snippet.text) == ("python", "answer = 6 * 7")


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_blocks("```\ncanopy info")


def test_snippets_of_a_page_share_names_and_folder(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for block in read_blocks("```python\nfrom pathlib import Path\n```\n```python\nPath('b').write_text('3')\n```\n"):
        reader.run(block)
    assert (tmp_path / "b").read_text() == "3"


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("```\npython -c 'raise SystemExit(3)'\n```", "ended with 3"),
        ("```\npython -c 'print(1)'\n```\n```text\n2\n```", "not in the output"),
        ("```yaml\n- 1\n```", "no settings"),
        ("```rust\n```", "language 'rust'"),
    ],
)
def test_what_does_not_run_fails(tmp_path: Path, page: str, reason: str) -> None:
    reader = Reader(tmp_path)
    with pytest.raises(AssertionError, match=reason):
        for block in read_blocks(page):
            reader.run(block)


def test_output_of_the_block_before_is_compared(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for block in read_blocks("```\npython -c 'print(1); print(2)'\n```\n```text\n2\n```"):
        reader.run(block)
    assert reader.output == "1\n2\n"


def test_every_excuse_gives_a_reason() -> None:
    for page in PAGES:
        for block in read_blocks(page.read_text(encoding="utf-8")):
            assert not block.excuse or len(block.excuse.split()) >= 3, f"{page.relative_to(REPOSITORY)}:{block.line}"


def anchors(markdown: str) -> set[str]:
    """Anchors of a page's headings, as the forge makes them."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    pages = [*PAGES, *(REPOSITORY / name for name in ("CONTRIBUTING.md", "SECURITY.md", "samples/README.md"))]
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if link.startswith(("http://", "https://")):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                missing.append(f"{page.relative_to(REPOSITORY)}: {link}")
    assert not missing
