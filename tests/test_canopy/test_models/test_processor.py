"""What the processor says of itself."""

from pathlib import Path

import pytest

from canopy.models.processor import has_bfloat16, processor_flags


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nbugs\t: none\n", {"fpu", "avx2", "avx512_bf16"}),
        ("processor: 0\nFeatures : fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("processor: 0\n", set()),
        ("", set()),
    ],
)
def test_flags_are_read_as_the_system_lists_them(tmp_path: Path, text: str, flags: set[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_flags(tmp_path / "cpuinfo") == flags


def test_a_system_without_a_list_has_no_flags(tmp_path: Path) -> None:
    assert processor_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx2", "avx512f"}, False), ({"amx_bf16"}, True), ({"avx512_bf16"}, True)]
)
def test_bfloat16_needs_its_own_instructions(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool) -> None:
    monkeypatch.setattr("canopy.models.processor.processor_flags", lambda: frozenset(flags))
    assert has_bfloat16.__wrapped__() is expected
