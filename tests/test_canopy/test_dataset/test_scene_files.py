"""Which files make a scene."""

from pathlib import Path
from typing import Any

import pytest

from canopy.dataset.config import SourceConfig
from canopy.dataset.scene_files import SceneFiles, list_scenes
from canopy.errors import DatasetError


def source(images: str, **values: Any) -> SourceConfig:
    return SourceConfig(**{"images": images, "site": "s", "licence": "none", **values})


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_labelled_scene_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "pairs/one/rgb.tif", "pairs/one/chm.tif", "pairs/one/mask.tif", "pairs/two/rgb.tif",
          "pairs/two/chm.tif", "elsewhere/rgb.tif")  # fmt: skip
    scenes = list_scenes("a", source("pairs/*/rgb.tif", heights="chm.tif", exclude="mask.tif"), tmp_path)
    pairs = tmp_path / "pairs"
    assert scenes == [
        SceneFiles("a", "one", pairs / "one/rgb.tif", pairs / "one/chm.tif", pairs / "one/mask.tif"),
        SceneFiles("a", "two", pairs / "two/rgb.tif", pairs / "two/chm.tif"),
    ]
    assert all(scene.labelled for scene in scenes)
    assert scenes[0].files() == tuple(pairs / "one" / name for name in ("rgb.tif", "chm.tif", "mask.tif"))
    assert scenes[1].files() == (pairs / "two/rgb.tif", pairs / "two/chm.tif")


def test_clouds_are_found_by_the_name_of_the_scene(tmp_path: Path) -> None:
    touch(tmp_path, "pairs/one/rgb.tif", "lidar/one_2.laz", "lidar/one_1.laz", "lidar/other_1.laz")
    (scene,) = list_scenes("a", source("pairs/*/rgb.tif", clouds="lidar/{scene}_*.laz"), tmp_path)
    assert scene.labelled and scene.heights is None
    assert scene.files() == tuple(
        tmp_path / name for name in ("pairs/one/rgb.tif", "lidar/one_1.laz", "lidar/one_2.laz")
    )


def test_imagery_is_named_by_its_path_below_the_glob(tmp_path: Path) -> None:
    touch(tmp_path, "images/b/x.tif", "images/a/x.jpg", "images/a/readme.txt", "images/17/2/3.png")
    scenes = list_scenes("i", source("images"), tmp_path)
    assert [scene.name for scene in scenes] == ["17_2_3", "a_x", "b_x"]
    assert [scene.tile is not None for scene in scenes] == [True, False, False]
    assert not any(scene.labelled for scene in scenes)
    assert [scene.name for scene in list_scenes("i", source("images/*/x.*"), tmp_path)] == ["a_x", "b_x"]


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ((), {"images": "pairs/*/rgb.tif"}, r"source a: no scenes at .*pairs/\*/rgb\.tif; check root and images"),
        (("pairs/s/rgb.tif",), {"images": "pairs/*/rgb.tif", "heights": "chm.tif"}, r"chm\.tif is missing"),
        (("pairs/s/rgb.tif",), {"images": "pairs/*/rgb.tif", "clouds": "{scene}.laz"}, r"no point cloud at .*/s\.laz"),
        (("p/s/rgb.tif", "q/s/rgb.tif", "p/s/chm.tif", "q/s/chm.tif"), {"images": "*/s/rgb.tif", "heights": "chm.tif"},
         "1 scenes share a name, first s; put each in its own folder"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path: Path, names: tuple[str, ...], values: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        list_scenes("a", source(**values), touch(tmp_path, *names))


def test_a_root_that_does_not_exist_has_no_scenes(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no scenes"):
        list_scenes("a", source("*.tif"), tmp_path / "nothing")


def test_a_folder_that_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    """site[1] would match site1 alone."""
    touch(tmp_path, "site[1]/pairs/s[2]/rgb.tif", "lidar/s[2]_1.laz", "lidar/s2_1.laz", "site1/pairs/x/rgb.tif")
    (scene,) = list_scenes("a", source("pairs/*/rgb.tif", clouds="../lidar/{scene}_*.laz"), tmp_path / "site[1]")
    assert scene.name == "s[2]"
    assert [path.name for path in scene.clouds] == ["s[2]_1.laz"]
    (scene,) = list_scenes("i", source("site[1]"), tmp_path)
    assert scene.name == "pairs_s[2]_rgb"
    (scene,) = list_scenes("i", source("site[1]/pairs/s[2]/rgb.tif"), tmp_path)
    assert scene.name == "rgb"


def test_a_wildcard_above_fixed_folders_names_scenes_by_all_that_varies(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/rgb/x.tif", "images/b/rgb/x.tif")
    assert [scene.name for scene in list_scenes("i", source("images/*/rgb/x.tif"), tmp_path)] == ["a_rgb_x", "b_rgb_x"]


@pytest.mark.parametrize("pattern", ["/absolute/*.tif", ""])
def test_a_pattern_that_is_no_glob_is_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DatasetError, match=r"no glob|no scenes"):
        list_scenes("i", source(pattern), tmp_path)
