"""What a map will cost, said before it is begun."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from height_models import CARD, MeanOfGreen
from odc.geo.crs import CRS
from odc.geo.geom import box
from rasters import make_raster

from canopy.prediction import cost as costs
from canopy.prediction import predict, run
from tiles.aoi import to_crs

LEFT, TOP = 500_000, 4_900_100


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_raster(
        tmp_path / "scene.tif", crs="EPSG:32612", origin=(LEFT, TOP), resolution=0.5, shape=(300, 300), pattern="noise"
    )


def area(side_m: float) -> Any:
    return box(LEFT + 5, TOP - 5 - side_m, LEFT + 5 + side_m, TOP - 5, "EPSG:32612")


def test_a_dry_run_says_the_cost_and_writes_nothing(scene: Path, tmp_path: Path) -> None:
    model = MeanOfGreen()
    before = sorted(tmp_path.rglob("*"))
    priced = predict(area(100), scene, model, tmp_path / "map.tif", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert priced.cost is not None
    assert priced.cost.area_ha == pytest.approx(1.0, rel=1e-3)
    assert (priced.cost.tiles, priced.cost.tiles_left, priced.tiles_done) == (1, 1, 0)
    assert priced.cost.seconds == priced.cost.chips * priced.cost.chip_s > 0
    assert priced.cost.disk_mb == pytest.approx(2 * 4 * 200 * 200 / 1e6)
    assert [tuple(batch.shape) for batch in model.batches] == [(4, 3, CARD.chip_px, CARD.chip_px)] * 2


def test_the_number_of_chips_is_near_that_which_is_mapped(scene: Path, tmp_path: Path) -> None:
    model = MeanOfGreen(chip_by_chip=True)
    priced = predict(area(120), scene, model, tmp_path / "map.tif", dry_run=True)
    model.batches.clear()
    predict(area(120), scene, model, tmp_path / "map.tif")
    mapped = sum(len(batch) for batch in model.batches)
    assert priced.cost is not None
    assert priced.cost.chips == pytest.approx(mapped, rel=0.25)


def test_finished_tiles_are_not_counted_again(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TILE_PX", 128)

    def stop(progress: Any) -> None:
        if progress.detail.startswith("tile 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(area(100), scene, MeanOfGreen(), tmp_path / "map.tif", report=stop)
    priced = predict(area(100), scene, MeanOfGreen(), tmp_path / "map.tif", dry_run=True)
    assert priced.cost is not None
    assert 0 < priced.cost.tiles_left < priced.cost.tiles
    assert priced.tiles_resumed == priced.cost.tiles - priced.cost.tiles_left
    assert f"{priced.tiles_resumed} of them finished" in str(priced.cost)


def test_a_long_map_says_its_cost_before_it_begins(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "TILE_PX", 128)
    monkeypatch.setattr(run, "LONG_CHIPS", 3)
    with caplog.at_level("INFO", "canopy"):
        predict(area(100), scene, MeanOfGreen(), tmp_path / "map.tif")
    lines = [record.getMessage() for record in caplog.records]
    (line,) = (line for line in lines if line.startswith("cost: "))
    assert "1 ha, " in line
    assert lines.index(line) > next(number for number, text in enumerate(lines) if text.startswith("map: "))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (80, "about 80 s"), (300, "about 5 min"), (7200, "about 2.0 h"), (400_000, "about 4.6 days")],
)
def test_times_read_as_people_say_them(seconds: float, text: str) -> None:
    assert costs.duration(seconds) == text


def test_the_command_prints_the_cost(scene: Path, tmp_path: Path, tiny_model: Path, canopy: Any) -> None:
    outline = to_crs(area(50), CRS("EPSG:4326"))
    (tmp_path / "area.geojson").write_text(json.dumps(outline.json))
    command = ("predict", "--aoi", tmp_path / "area.geojson", "--imagery", scene, "--model", tiny_model, "--backend",
               "eager", "--out", tmp_path / "map.tif", "--dry-run")  # fmt: skip
    code, out, err = canopy(*command)
    assert (code, out) == (0, f"{tmp_path / 'map.tif'}\n"), err
    assert "cost: " in err
    document = json.loads(canopy(*command, "--json")[1])
    assert document["cost"]["tiles"] == 1
    assert np.isfinite(document["cost"]["seconds"])
    assert not (tmp_path / "map.tif").exists()
