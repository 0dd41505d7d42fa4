"""Plans: what they decide, and what they refuse to mix."""

import io
import json
from dataclasses import replace
from pathlib import Path

import geopandas
import pytest
from batches import copy_of, plan_batch, request_of
from odc.geo.geom import box
from tiny_models import save_tiny_model

from canopy.batch import plan as plans
from canopy.batch.imagery import ImageryOptions, pin
from canopy.batch.plan import Plan, read_plan
from canopy.batch.planning import make_plan
from canopy.batch.runtime import Runtime
from canopy.batch.store import open_store
from canopy.errors import AOIError, CalibrationError, CoverageError, ImageryError, ModelError, OutputError
from canopy.imagery import open_imagery


@pytest.fixture(scope="module")
def planned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("planned") / "batch"
    return folder, plan_batch(inputs, folder)[1]


def test_a_plan_says_tiles_area_and_time_by_formula(planned: tuple[Path, Plan]) -> None:
    _, plan = planned
    estimate = plan.estimate
    assert (estimate.tiles, estimate.without_imagery) == (4, 2)
    assert estimate.area_km2 == pytest.approx(0.19 * 0.2, rel=0.06)
    assert estimate.worker_hours == pytest.approx(estimate.computed_mpx / 0.12 / 3600)
    strides = 256 / 96  # of chips of 128 px that overlap by 32
    assert estimate.halo == pytest.approx(((strides + 1) / strides) ** 2)
    assert "0.12 Mpx/s" in estimate.describe()
    tiles = list(plan.tiles())
    assert sum(tile.window.height * tile.window.width for tile in tiles) / 4e6 == pytest.approx(
        estimate.area_km2, rel=0.01
    )
    assert all(tile.scenes == (0,) for tile in tiles)


def test_tiles_are_geoparquet(planned: tuple[Path, Plan]) -> None:
    folder, plan = planned
    table = geopandas.read_parquet(io.BytesIO((folder / plan.document["objects"]["tiles"]).read_bytes()))
    assert table.crs.to_epsg() == 4326 or table.crs.to_authority() == ("OGC", "CRS84")
    assert tuple(table.total_bounds[:2]) == pytest.approx((-111.0, 44.2517), abs=1e-4)
    assert list(table[table.imagery].name) == plan.names.to_pylist()


def test_the_same_request_gives_the_plan_that_is_there(inputs: Path, planned: tuple[Path, Plan]) -> None:
    folder, plan = planned
    before = (folder / "plan.json").read_bytes()
    assert make_plan(request_of(inputs), open_store(folder)).id == plan.id
    assert (folder / "plan.json").read_bytes() == before


def test_another_request_is_refused(inputs: Path, planned: tuple[Path, Plan]) -> None:
    store = open_store(planned[0])
    for changes, differing in (({"tile_px": 512}, "tile_px"), ({"uncertainty": True}, "uncertainty"),
                               ({"aoi": "-111.0,44.252,-110.9976,44.2535"}, "aoi")):  # fmt: skip
        with pytest.raises(OutputError, match=rf"another plan \(.*{differing}"):
            make_plan(replace(request_of(inputs), **changes), store)


def test_intervals_that_the_model_lacks_are_refused_before_tiles_are_planned(inputs: Path, tmp_path: Path) -> None:
    bundle = save_tiny_model(tmp_path / "own.safetensors", intervals=None)
    with pytest.raises(ModelError, match=rf"calibrate {bundle} --imagery"):
        plan_batch(inputs, tmp_path / "batch", model=str(bundle), uncertainty=True)
    assert not list((tmp_path / "batch").rglob("plan.json"))


def test_how_heights_are_read_off_the_bins_is_part_of_a_plan(
    inputs: Path, planned: tuple[Path, Plan], tmp_path: Path
) -> None:
    store, plan = plan_batch(inputs, tmp_path / "batch", decode="mean")
    assert plan.id != planned[1].id
    assert Runtime(store, plan).model.decode == "mean"


def test_another_version_and_a_changed_plan_are_refused(
    planned: tuple[Path, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_of(planned[0], tmp_path / "copy")
    with monkeypatch.context() as patched:
        patched.setattr(plans, "__version__", "9.9")
        with pytest.raises(OutputError, match=r"planned by Canopy .*, this is 9\.9"):
            read_plan(store)
    path = tmp_path / "copy" / "plan.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "uncertainty": True}))
    with pytest.raises(OutputError, match="was changed"):
        read_plan(store)
    path.write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        read_plan(store)
    path.write_text(json.dumps(document))
    (tmp_path / "copy" / document["objects"]["tiles"]).write_bytes(b"cut")
    with pytest.raises(OutputError, match="missing or damaged"):
        read_plan(store)


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="canopy batch plan"):
        read_plan(open_store(tmp_path))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tile_px": 100}, AOIError, "a multiple of 64"),
        ({"device": "tpu"}, ModelError, "no device"),
        ({"model": "no-such-model"}, ModelError, "no-such-model"),
        ({"model": "canopy-ssl-tiny"}, ModelError, "an encoder alone"),
        ({"aoi": "10,50,10.01,50.01"}, CoverageError, "no imagery over the AOI"),
        ({"calibration": Path("absent.json")}, CalibrationError, "absent.json"),
        ({"options": ImageryOptions(bands=(1, 2))}, ImageryError, "three bands"),
        ({"decode": "mode"}, ModelError, "no decoder 'mode'"),
    ],
)
def test_what_cannot_be_mapped_leaves_no_plan(
    inputs: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    store = open_store(tmp_path / "batch", make=True)
    with pytest.raises(error, match=message):
        make_plan(replace(request_of(inputs), **changes), store)
    assert store.read("plan.json") is None


def test_a_key_in_an_address_is_not_written_into_a_plan(inputs: Path) -> None:
    class Tiled:
        rescale = open_imagery(inputs / "scene.tif").rescale
        uris = ()
        footprint = box(0, 0, 1, 1, "EPSG:4326")

        def fingerprint(self) -> str:
            return ""

    for address in ("https://tiles.example/{z}/{x}/{y}?api_key=abcd", "https://user:word@tiles.example/{z}"):
        with pytest.raises(ImageryError, match="would be written into the plan") as refused:
            pin(Tiled(), [address], ImageryOptions())  # type: ignore[arg-type]
        assert "abcd" not in str(refused.value)
        assert "word" not in str(refused.value)
