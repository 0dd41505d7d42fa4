"""Stands: the figures of each polygon, or of each square of a grid, with intervals whose coverage was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from canopy.errors import ProductError
from canopy.products.cells import OpeningRule, opening_halo
from canopy.products.measuring import STATISTICS, Measures, measure_group, stratum_names
from canopy.products.reading import ProductMap, open_map
from canopy.products.stand_errors import BLOCK_M, calibrate_stands
from canopy.products.stand_intervals import StandCalibration, read_stand_calibration, write_calibration
from canopy.products.work import Work, hold_work, part_name
from canopy.products.writing import (
    CSV,
    GEOMETRY,
    GEOPACKAGE,
    PARQUET,
    TableSpec,
    provenance,
    publish_table,
    require_suffix,
)
from canopy.products.zones import Zones, grid_window, grid_windows, group_zones, read_zones, require_ground
from canopy.progress import Progress, Report, ignore
from tiles.qgis import stands_qml
from tiles.zonal import ZoneGrid

FAO_HA, FAO_COVER = 0.5, 0.1
"""Smallest area and cover of trees of at least 5 m of a forest (FAO 2020, Global Forest Resources Assessment)."""
Kind = Literal["calibrated", "bounds"]
_ROW = "row"


@dataclass(frozen=True)
class StandOptions:
    """What a table of stands depends on, besides the files."""

    layer: str | None = None
    """Layer of the polygons."""
    id_field: str | None = None
    """Field whose values name the polygons."""
    grid_ha: float | None = None
    """Area of the squares of a grid, hectares, in place of polygons."""
    fao: bool = False
    """Whether each stand is judged by FAO's definition of a forest."""
    error_m: float | None = None
    """Standard error of a cell, metres, in place of the map's own intervals."""
    block_m: float = BLOCK_M
    """Side of the blocks of a calibration, metres."""
    rule: OpeningRule = field(default_factory=OpeningRule)
    """Which cells are part of an opening."""

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON."""
        return {
            "field": self.id_field, "layer": self.layer, "grid_ha": self.grid_ha, "fao": self.fao,
            "error_m": self.error_m, "block_m": self.block_m, "gap_below_m": self.rule.below_m,
            "gap_min_m2": self.rule.min_m2,
        }  # fmt: skip


@dataclass(frozen=True)
class Stands:
    """A table of stands on disk."""

    path: Path
    """File."""
    count: int
    """Number of stands."""
    calibration: StandCalibration | None
    """Calibration of the intervals."""
    intervals: Kind | None
    """Origin of the intervals: calibrated, or the bounds of the map's own; None where there are none."""


def derive_stands(
    map_path: Path,
    out: Path,
    options: StandOptions,
    *,
    polygons: Path | None = None,
    truth: Path | None = None,
    calibration: Path | None = None,
    overwrite: bool = False,
    report: Report = ignore,
) -> Stands:
    """Measure the stands of a map and write them as a table.

    Args:
        map_path: Height map.
        out: Table: GeoPackage, GeoParquet or CSV.
        options: Options.
        polygons: Stands; None for a grid.
        truth: Canopy height model from which intervals are calibrated; the calibration is written to `calibration`
            where that is given too.
        calibration: Calibration to use, or with `truth` to write.
        overwrite: Whether outputs are replaced.
        report: Called after each group of stands.

    Raises:
        CanopyError: An input is of no use, or an output cannot be written.
    """
    require_suffix(out, (*GEOPACKAGE, *PARQUET, *CSV))
    if (polygons is None) == (options.grid_ha is None):
        raise ProductError("stands of a file or of a grid: one of the two expected")
    inputs = [path for path in (map_path, polygons, truth, calibration if truth is None else None) if path is not None]
    _require_files(inputs)
    with open_map(map_path, error_m=options.error_m) as source:
        opening_halo(source, options.rule)  # refuses before anything is written
        zones = _zones(source, polygons, options)
        settings = {"product": "stands", "format": out.suffix.lower(), **options.to_json()}
        with hold_work(out, settings, inputs=inputs, overwrite=overwrite) as work:
            intervals = _calibration(source, truth, calibration, options, report)
            stands = _Measuring(source, options, intervals, work, report)
            names = stands.measure(zones) if zones is not None else stands.measure_grid(_grid_side(source, options))
            if not stands.count:
                work.drop()
                raise ProductError(
                    f"no square of {options.grid_ha:g} ha has its middle on {source.path} and a height in it: smaller "
                    "squares expected"
                )
            spec = _spec(source, zones)
            about = provenance("stands", {"map": source}, options.to_json())
            about["intervals"] = stands.kind
            about["calibration"] = intervals.model_dump(mode="json") if intervals is not None else None
            publish_table(work, spec, stands.tables(names, sort=zones is not None), about, source)
    return Stands(out, stands.count, intervals, stands.kind)


def _require_files(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise ProductError(f"{path}: no such file; check the path")


def _zones(source: ProductMap, polygons: Path | None, options: StandOptions) -> Zones | None:
    if polygons is None:
        return None
    zones = read_zones(polygons, source, layer=options.layer, field=options.id_field)
    require_ground(zones, source, polygons)
    return zones


def _calibration(
    source: ProductMap, truth: Path | None, path: Path | None, options: StandOptions, report: Report
) -> StandCalibration | None:
    if truth is not None:
        fitted = calibrate_stands(source, truth, block_m=options.block_m, rule=options.rule, report=report)
        if path is not None:
            write_calibration(fitted, path)
        return fitted
    if path is None:
        return None
    calibration = read_stand_calibration(path)
    if calibration.relative and not source.has_intervals:
        raise ProductError(
            f"{path} is relative to the intervals of a map, and {source.path} has none: map with --uncertainty, or "
            "state its error with --error-m"
        )
    return calibration


def _grid_side(source: ProductMap, options: StandOptions) -> float:
    """Return the side of a square of the grid in units of the CRS."""
    return float(np.sqrt((options.grid_ha or 0) * 1e4) / source.scale_m)


@dataclass
class _Measuring:
    """Stands of a map that are measured group by group, each group a part of the work."""

    source: ProductMap
    options: StandOptions
    calibration: StandCalibration | None
    work: Work
    report: Report
    count: int = 0

    @property
    def kind(self) -> Kind | None:
        """Origin of the intervals."""
        if self.calibration is not None:
            return "calibrated"
        return "bounds" if self.source.has_intervals else None

    def measure(self, zones: Zones) -> list[str]:
        """Measure polygons, and return the names of the parts."""
        names = []
        resumed = 0
        for group in group_zones(zones, self._grid):
            names.append(group.name)
            if self.work.has_table(group.name):
                resumed += len(group.numbers)
            else:
                measured = measure_group(self.source, zones, group, self.options.rule, ends=self.kind == "bounds")
                self.work.save_table(group.name, self._table(zones.take(group.numbers), measured, group.numbers))
            self.count += len(group.numbers)
            self.report(
                Progress(self.count, len(zones), "stands", f"stand {self.count:,}/{len(zones):,}", resumed=resumed)
            )
        return names

    def measure_grid(self, side: float) -> list[str]:
        """Measure the squares of a grid, window by window; those without a known cell are left out."""
        names, resumed = [], 0
        windows = grid_windows(self.source)
        for number, window in enumerate(windows, 1):
            names.append(part_name(window))
            if self.work.has_table(names[-1]):
                resumed += 1
            else:
                self.work.save_table(names[-1], self._measured_window(grid_window(self.source, side, window)))
            self.report(Progress(number, len(windows), "windows", f"window {number}/{len(windows)}", resumed=resumed))
        self.count = sum(self.work.load_table(name).num_rows for name in names)
        return names

    def tables(self, names: Sequence[str], *, sort: bool) -> Iterator[pa.Table]:
        """Yield the rows of the parts, in the order of the polygons or of the windows."""
        if not sort:
            yield from (self.work.load_table(name).drop_columns([_ROW]) for name in names)
            return
        # Polygons come back in the order of their file; they are in memory anyhow.
        table = pa.concat_tables([self.work.load_table(name) for name in names])
        yield table.sort_by(_ROW).drop_columns([_ROW])

    @property
    def _grid(self) -> ZoneGrid:
        return ZoneGrid.of(self.source.transform, self.source.shape, self.source.crs)

    def _measured_window(self, zones: Zones) -> pa.Table:
        """Return the rows of the squares of a window."""
        tables = [self._table(zones.take(np.zeros(0, np.int64)), [], np.zeros(0, np.int64))]
        for group in group_zones(zones, self._grid):
            measured = measure_group(self.source, zones, group, self.options.rule, ends=self.kind == "bounds")
            tables.append(self._table(zones.take(group.numbers), measured, group.numbers))
        table = pa.concat_tables(tables).sort_by(_ROW)
        return table.filter(pc.greater(table["known_share"], 0))

    def _table(self, zones: Zones, measured: Sequence[Measures], numbers: Any) -> pa.Table:
        rows = [
            {**self._row(measures, float(area)), "id": name, GEOMETRY: geometry, _ROW: int(number)}
            for name, measures, area, geometry, number in zip(
                zones.ids, measured, zones.areas_m2, shapely.to_wkb(zones.polygons), numbers, strict=True
            )
        ]
        return pa.Table.from_pylist(rows, schema=_schema().append(pa.field(_ROW, pa.int64())))

    def _row(self, measures: Measures, area_m2: float) -> dict[str, Any]:
        values: dict[str, Any] = {"area_ha": area_m2 / 1e4, "known_share": measures.known_share}
        for name in STATISTICS:
            low, high = self._interval(name, measures, area_m2) or (None, None)
            values |= {name: measures.surface.values[name], f"{name}_low": low, f"{name}_high": high}
            coverage = self.calibration and self.calibration.statistics.get(name)
            values[f"{name}_coverage"] = coverage.coverage.share if coverage and coverage.coverage else None
        strata = measures.strata or [None] * len(stratum_names())
        return {
            **values,
            "max_m": measures.max_m,
            "gap_share": measures.gap_share,
            "rumple": measures.rumple,
            "layers": measures.layers,
            **dict(zip(stratum_names(), strata, strict=True)),
            "fao_forest": _fao_forest(area_m2, values) if self.options.fao else None,
        }

    def _interval(self, name: str, measures: Measures, area_m2: float) -> tuple[float, float] | None:
        """Return the interval of a figure.

        Without a calibration its ends are the figures of the surfaces of all lower and all upper ends at once: errors
        that go together over the whole stand. That is the widest that the map's own intervals allow.
        """
        if self.calibration is not None:
            return self.calibration.interval(name, measures, area_m2)
        if measures.low is None or measures.high is None:
            return None
        low, high = measures.low.values[name], measures.high.values[name]
        return None if low is None or high is None else (max(0.0, low), high)


def _fao_forest(area_m2: float, values: dict[str, Any]) -> str | None:
    """Judge a stand by FAO's definition: forest, other, or unsure where the interval of its cover spans the limit."""
    cover, low, high = (values[f"cover_5m{end}"] for end in ("", "_low", "_high"))
    if cover is None:
        return None
    if area_m2 < FAO_HA * 1e4 * (1 - 1e-6):
        return "other"
    if low is not None and low < FAO_COVER <= high:
        return "unsure"
    return "forest" if cover >= FAO_COVER else "other"


def _schema() -> pa.Schema:
    number = pa.float64()
    figures = [f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high", "_coverage")]
    return pa.schema([
        ("id", pa.string()), ("area_ha", number), ("known_share", number), *((name, number) for name in figures),
        ("max_m", number), ("gap_share", number), ("rumple", number), ("layers", pa.int32()),
        *((name, number) for name in stratum_names()), ("fao_forest", pa.string()), (GEOMETRY, pa.binary()),
    ])  # fmt: skip


def _spec(source: ProductMap, zones: Zones | None) -> TableSpec:
    is_multi = zones is not None and bool((shapely.get_type_id(zones.polygons) == 6).any())
    kind = "MultiPolygon" if is_multi else "Polygon"
    return TableSpec("stands", "Stands", _schema(), kind, source.crs, stands_qml())
