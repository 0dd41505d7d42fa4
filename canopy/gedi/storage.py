"""Files of shots: GeoParquet or GeoPackage, with units, filter and funnel in their metadata."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from canopy.errors import LidarError, OutputError, one_line
from canopy.gedi.filters import ShotFilter, Step
from canopy.gedi.granules import NUMBERS, RH_PERCENTS
from canopy.gedi.shots import Reading
from canopy.version import __version__
from tiles.files import removed_on_error, replacing
from tiles.qgis import GEOPACKAGE_OPTIONS, add_layer_style, shots_qml

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

META_KEY, LAYER_KEY = "canopy:gedi", "canopy_gedi"
"""Keys of the metadata in Parquet and in GeoPackage, where GDAL splits a key at a colon."""
PARQUET, GEOPACKAGE = (".parquet", ".geoparquet", ".pq"), (".gpkg",)
LAYER = "shots"
_MAX_VALUE_BYTES, _MAX_EXPANSION = 64 * 2**20, 200
"""Values of a file of shots: at most as many bytes, or as many times its own."""
_TABLE_ERRORS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""Whatever geopandas, pyarrow and GDAL raise on a damaged file."""


def require_shots_format(path: Path) -> None:
    """Refuse a name whose ending is of no format that shots are written in.

    Raises:
        OutputError: The ending is another.
    """
    if path.suffix.lower() not in (*PARQUET, *GEOPACKAGE):
        raise OutputError(
            f"{path}: shots are written as GeoParquet (.parquet) or GeoPackage (.gpkg); name one of these"
        )


def write_shots(reading: Reading, path: Path, rules: ShotFilter) -> None:
    """Write shots as GeoParquet or GeoPackage with units, filter and funnel in its metadata, all or nothing.

    Raises:
        OutputError: The file cannot be written, or its ending is of another format.
    """
    require_shots_format(path)
    heights = [*(f"rh{n}" for n in RH_PERCENTS), "elevation_m", "dem_m"]
    about = json.dumps({
        "canopy_version": __version__,
        "units": {**dict.fromkeys(heights, "m"), "cover": "1"},
        "granules": sorted(set(reading.shots["granule"].astype(str))),
        "filter": rules.model_dump(mode="json"),
        "read": reading.read,
        "duplicates": reading.duplicates,
        "unplaced": reading.unplaced,
        "outside": reading.outside,
        "funnel": [asdict(step) for step in reading.funnel],
    })  # fmt: skip
    write = _write_geopackage if path.suffix.lower() in GEOPACKAGE else _write_parquet
    try:
        with replacing(path) as draft:
            write(reading.shots, draft, about)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error)}") from error


def _write_parquet(shots: "GeoDataFrame", draft: Path, about: str) -> None:
    import pyarrow.parquet as pq
    from geopandas.io.arrow import _geopandas_to_arrow

    table = _geopandas_to_arrow(shots)
    metadata = {**(table.schema.metadata or {}), META_KEY.encode(): about.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), draft, compression="zstd")


def _write_geopackage(shots: "GeoDataFrame", draft: Path, about: str) -> None:
    # GeoPackage has no unsigned 64-bit numbers; shot numbers need 54 bits.
    texts = dict.fromkeys(("beam", "granule", "product", "version"), str)
    plain = shots.astype({**texts, "shot_number": np.int64})
    # Its driver looks at the ending of the name.
    named = draft.with_name(f"{draft.name}.gpkg")
    with removed_on_error(named):
        plain.to_file(
            named, driver="GPKG", layer=LAYER, engine="pyogrio", layer_metadata={LAYER_KEY: about},
            dataset_options=GEOPACKAGE_OPTIONS,
        )  # fmt: skip
        add_layer_style(named, LAYER, "geom", "Relative height 98", shots_qml())
    named.replace(draft)


def read_shots(path: Path) -> "GeoDataFrame":
    """Read shots that `write_shots` wrote.

    Returns:
        Points in EPSG:4326 with the columns of numbers as float, null where unknown.

    Raises:
        LidarError: No such file, or another kind of file.
    """
    if not path.is_file():
        raise LidarError(f"{path}: no such file; shots of canopy gedi read expected")
    shots = _table(path)
    missing = {"shot_number", "beam", "rh98", "sensitivity", "geometry"} - set(shots.columns)
    if missing or shots.crs is None:
        raise LidarError(f"{path} lacks {', '.join(sorted(missing)) or 'a CRS'}: shots of canopy gedi read expected")
    if not len(shots):
        raise LidarError(f"{path} has no shots: read granules over the area of the map")
    try:
        shots = shots.assign(
            shot_number=shots["shot_number"].astype(np.uint64),
            beam=shots["beam"].astype(str),
            **{name: shots[name].astype(np.float32) if name in shots else np.float32(np.nan) for name in NUMBERS},
        ).to_crs("EPSG:4326")
        if not ((shots.geom_type == "Point") & ~shots.is_empty).all():
            raise ValueError("points expected")
    except _TABLE_ERRORS as error:
        raise LidarError(f"{path}: damaged: {one_line(error, 200)}; shots of canopy gedi read expected") from error
    return shots


def _table(path: Path) -> "GeoDataFrame":
    """Return the table of a file of shots, whatever it contains."""
    import geopandas
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() in GEOPACKAGE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GDAL's remarks on single values; the columns are checked below
                return geopandas.read_file(path, engine="pyogrio", layer=_layer_of_shots(path))
        # Runs of one value take no bytes in Parquet: a small file may promise a billion rows.
        metadata = pq.read_metadata(path)
        need = metadata.num_rows * metadata.num_columns * 8
        if need > max(_MAX_VALUE_BYTES, _MAX_EXPANSION * path.stat().st_size):
            raise ValueError(f"{metadata.num_rows:,} rows in {path.stat().st_size:,} bytes")
        return geopandas.read_parquet(path)
    except _TABLE_ERRORS as error:
        raise LidarError(f"{path} is not a GeoParquet of shots: {one_line(error, 200)}") from error


def _layer_of_shots(path: Path) -> str | int:
    """Return the layer of a GeoPackage to read: ours, which lies next to its style, else the first."""
    import pyogrio

    return LAYER if LAYER in pyogrio.list_layers(path)[:, 0] else 0


def read_funnel(path: Path) -> tuple[Step, ...]:
    """Read the funnel that a file of shots carries; empty where it has none.

    Raises:
        LidarError: The metadata are damaged.
    """
    try:
        steps = shots_metadata(path).get("funnel", [])
        counts = ("before", "dropped", "unknown")
        return tuple(Step(str(step["rule"]), *(int(step[name]) for name in counts)) for step in steps)
    except _TABLE_ERRORS as error:
        raise LidarError(f"{path}: damaged metadata ({one_line(error, 200)}): read the granules again") from error


def shots_metadata(path: Path) -> dict[str, Any]:
    """Read filter, funnel and granules of a file of shots, as JSON; empty where it has none."""
    if path.suffix.lower() in GEOPACKAGE:
        import pyogrio

        text = (pyogrio.read_info(path, layer=LAYER).get("layer_metadata") or {}).get(LAYER_KEY, "{}")
    else:
        import pyarrow.parquet as pq

        text = (pq.read_schema(path).metadata or {}).get(META_KEY.encode(), b"{}")
    about: dict[str, Any] = json.loads(text)
    return about
