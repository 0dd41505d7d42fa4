"""Configurations: YAML in, one line out for what is wrong with it."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from canopy.config import MAX_BYTES, Config, dump_config, load_config, parse, parse_overrides, read_yaml
from canopy.errors import ConfigError


class Loop(Config):
    rate: float = 1e-4
    steps: int = 10


class Part(Config):
    weight: float = 1.0
    label: str | None = None


class Example(Config):
    name: str = "x"
    loop: Loop = Loop()
    parts: dict[str, Part] = Field(default_factory=dict)
    ranges: tuple[Part, ...] = ()
    second: Loop | None = None
    folder: Path = Path()
    stored: float = Field(default=1.0, alias="storedAs")


class Cells(Config):
    cell_m: float = 1.0
    gsd_m: float = 0.5

    @model_validator(mode="after")
    def _cells_have_whole_pixels(self) -> "Cells":
        if round(self.cell_m / self.gsd_m) < 1:
            raise ValueError("cells are smaller than a pixel")
        return self


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Example:
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, Example, overrides)


def test_a_file_and_flags_become_one_configuration(tmp_path: Path) -> None:
    text = "name: set\nloop: {rate: 0.5}\nparts: {a: &a {weight: 2}, b: *a, c: {<<: *a, label: z}}\n"
    config = load(tmp_path, text, "loop.steps=3", "parts.d.weight=4", "folder=/data")
    assert (config.name, config.loop.rate, config.loop.steps) == ("set", 0.5, 3)
    assert {key: part.weight for key, part in config.parts.items()} == {"a": 2, "b": 2, "c": 2, "d": 4}
    assert (config.parts["c"].label, config.folder) == ("z", Path("/data"))


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "# nothing\n") == load(tmp_path, b"\xef\xbb\xbf") == Example()
    assert parse_overrides(Example, ()) == Example()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("-1e+5", -1e5), ("+2.5e3", 2500.0), (".5e1", 5.0), ("1.e2", 100.0),
        ("1e5x", "1e5x"), ("e5", "e5"), ("1e", "1e"), ("'1e-5'", "1e-5"), ("1", 1), ("1.5", 1.5), (".inf", math.inf),
        ("0x10", 16), ("a1e5", "a1e5"), ("1e5 2", "1e5 2"), ("[1e-5, 2e3]", [1e-5, 2e3]),
    ],
)  # fmt: skip
def test_an_exponent_makes_a_number(text: str, value: Any) -> None:
    result = read_yaml(text, "test")
    assert result == value and type(result) is type(value)
    assert load_value(text) == value


def load_value(text: str) -> Any:
    """The same through a flag, in a field of any type."""

    class Any_(Config):
        value: Any = None

    return parse_overrides(Any_, (f"value={text}",)).value


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8) | st.sampled_from(
    ["1e5", "1e-5", "-.5E3", "1.e1", "no", "1:30", "2020-07-01", "~", "", "0o7", "012"]))  # fmt: skip
def test_a_written_configuration_is_read_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    config = parse(Example, {"name": name, "loop": {"rate": 1e-7}, "parts": {name: {"label": name}}}, "test")
    dump_config(config, path)
    assert load_config(path, Example) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"nme": "x"}, "nme: unknown setting, did you mean name?"),
        ({"Name": "x"}, "Name: unknown setting, did you mean name?"),
        ({"loop": {"stepps": 3}}, "loop.stepps: unknown setting, did you mean steps?"),
        ({"second": {"rat": 3}}, "second.rat: unknown setting, did you mean rate?"),
        ({"parts": {"a": {"wieght": 3}}}, "parts.a.wieght: unknown setting, did you mean weight?"),
        ({"ranges": [{}, {"lable": 3}]}, "ranges.1.lable: unknown setting, did you mean label?"),
        ({"storedas": 2}, "storedas: unknown setting, did you mean storedAs?"),
        ({"loop": {"zzz": 3}}, "loop.zzz: unknown setting; rate, steps expected"),
        ({"loop": {"steps": "many", "rat": 1}}, "loop.rat: unknown setting, did you mean rate?"),
        ({"loop": {"steps": "many"}}, "loop.steps: Input should be a valid integer"),
        ({"loop": {"rate": float("inf")}}, "loop.rate: Input should be a finite number"),
        ({"loop": {"rate": float("nan")}}, "loop.rate: Input should be a finite number"),
        ({"loop": 3}, "loop: Input should be"),
        ({"name": ["x" * 1000]}, "name: Input should be a valid string"),
    ],
)
def test_a_fault_is_one_line_that_names_the_setting(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Example, tree, "c.yaml")
    assert str(caught.value).startswith(f"c.yaml: {message}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_numbers_beyond_all_computing_are_one_line() -> None:
    """Each is a finite number, and their quotient is not."""
    with pytest.raises(ConfigError, match=r"c\.yaml: numbers too large or too small to compute with"):
        parse(Cells, {"cell_m": 1e300, "gsd_m": 1e-300}, "c.yaml")


def test_a_flag_that_is_misspelt_is_named(tmp_path: Path) -> None:
    for override, message in (
        ("lop.rate=1", r"lop: unknown setting, did you mean loop\?"),
        ("loop.rate", r"--set 'loop.rate': a.b=value expected"),
        ("name.x=1", "name is a value, not a group of settings"),
        ("loop.rate=[", r"--set 'loop.rate=\[' is not YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, "name: y", override)


def bomb(levels: int, width: int) -> str:
    """Aliases of aliases: width ** levels values in a few lines."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int, width: int) -> str:
    """The same through merged mappings, which PyYAML writes out while it reads."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [" + ", ".join([f"*a{n - 1}"] * width) + "]}" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": (bomb(10, 10), "values once its aliases are written out, 50000 allowed"),
    "aliases as keys": ("a: &a [1]\n" + "\n".join(f"? *a\n: {n}" for n in range(3)), "is not YAML"),
    "merges": (merge_bomb(12, 10), "values once its aliases are written out"),
    "long list of aliases": ("a: &a [" + "x, " * 1000 + "]\nb: [" + "*a, " * 1000 + "]", "written out"),
    "an anchor in itself": ("a: &a [*a]", "the anchor in line 1 contains itself"),
    "an anchor in itself by a merge": ("a: &a {<<: *a}", "contains itself"),
    "deep lists": ("[" * 20_000, "more than 50 brackets inside each other"),
    "deep mappings": ("{a: " * 20_000, "more than 50 brackets inside each other"),
    "deep blocks": ("- " * 20_000 + "x", "nested too deeply"),
    "a program": ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    "a date that does not exist": ("name: 2020-13-45", "is not YAML"),
    "a number of 5000 digits": ("name: " + "9" * 5000, "is not YAML"),
    "a tag that does not fit": ("name: !!bool maybe", "is not YAML"),
    "an empty number": ("name: !!int ''", "is not YAML"),
    "several documents": ("a: 1\n---\nb: 2", "is not YAML"),
    "a list": ("- a", "a list, a mapping of settings expected"),
    "a text": ("just words", "a str, a mapping of settings expected"),
    "no text": (b"\xff\xfe\0\1", "is not YAML"),
    "control characters": ("name: \x07", "is not YAML"),
    "too large": ("# " + "x" * MAX_BYTES, "over 256 kB"),
    "keys that are no text": ("{1: 2, ~: 3}", "Keys should be strings"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line_at_once(tmp_path: Path, name: str) -> None:
    text, message = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert time.process_time() - start < 5  # of the processor: a bomb never ends, and a busy machine is no bomb


def test_aliases_of_ordinary_size_are_read(tmp_path: Path) -> None:
    text = "a: &a {weight: 1}\n" + "\n".join(f"p{n}: {{<<: *a, label: n{n}}}" for n in range(500))
    config = load(tmp_path, "parts:\n  " + text.replace("\n", "\n  "))
    assert len(config.parts) == 501 and config.parts["p499"].label == "n499"


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: (No such file|Is a directory)"):
        load_config(tmp_path / name, Example)


def test_our_own_configurations_load_as_before() -> None:
    """With the reader of YAML 1.1 they mean the same: none of them relies on what changed."""
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        assert read_yaml(path.read_text(), str(path)) == yaml.safe_load(path.read_text())
