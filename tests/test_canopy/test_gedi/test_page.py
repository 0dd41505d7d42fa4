"""The page of a validation."""

from pathlib import Path

import pytest

from canopy.gedi.page import write_page
from canopy.gedi.storage import read_funnel
from canopy.gedi.validation import Validation, validate_map


@pytest.fixture(scope="module")
def validation(chm: Path, shots: Path) -> Validation:
    return validate_map(chm, shots)


def test_a_page_needs_no_other_file_and_says_the_figures(validation: Validation, tmp_path: Path) -> None:
    page = write_page(validation, tmp_path / "page")
    text = page.read_text(encoding="utf-8")
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "gedi-residuals.png", "gedi-scatter.png", "gedi.html",
    ]  # fmt: skip
    assert text.count("data:image/png;base64,") == 2
    assert f"errs by {validation.residuals.mae_m:.1f} m" in text
    assert f"{validation.n:,} shots on known cells" in text
    assert f"{validation.edges:,} with a tree edge, kept." in text
    for step in read_funnel(validation.pairs[0][1]):
        assert f"<th>{step.rule}</th><td>{step.before:,}</td><td>{step.dropped:,}</td>" in text


def test_names_of_files_are_escaped(validation: Validation, tmp_path: Path) -> None:
    from dataclasses import replace

    odd = tmp_path / "a<b>&.tif"
    odd.write_bytes(validation.pairs[0][0].read_bytes())
    text = write_page(replace(validation, pairs=((odd, validation.pairs[0][1]),)), tmp_path / "page").read_text(
        encoding="utf-8"
    )
    assert "a&lt;b&gt;&amp;.tif" in text
    assert "a<b>" not in text
