"""`canopy batch plan | run | status | retry | collect | doctor`."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canopy.cli.options import AreaLayer, Json, parse_nodata, parse_numbers
from canopy.cli.predict import (
    Alpha,
    Aoi,
    Backend,
    Bands,
    CalibrationFile,
    Cloud,
    Date,
    Decoder,
    Device,
    Force,
    HaveRight,
    Imagery,
    ImageryCrs,
    ImageryDatetime,
    Masks,
    Nodata,
    Offline,
    OffNadir,
    Order,
    Outside,
    Resolution,
    Scale,
    Sun,
    Uncertainty,
)
from canopy.cli.terminal import say, show_progress

if TYPE_CHECKING:
    from canopy.batch.executors import Pool
    from canopy.batch.ledger import Status

batch = typer.Typer(no_args_is_help=True, help="Map countries and continents, tile by tile, on many machines.")

Batch = Annotated[str, typer.Argument(help="Folder of the batch, or s3://bucket/prefix.", metavar="DIR")]
Attempts = Annotated[int, typer.Option(min=1, help="Attempts of a tile whose failures can pass.")]
WATCH_S = 10.0


@batch.command()
def plan(
    aoi: Aoi,
    out: Annotated[str, typer.Option(help="Folder of the batch, or s3://bucket/prefix.", metavar="DIR")],
    imagery: Imagery = None,
    model: Annotated[
        str | None, typer.Option(help="Name (canopy models list) or bundle (default: config, else canopy-small).")
    ] = None,
    layer: AreaLayer = None,
    grid: Annotated[str, typer.Option(help="Grid of the tiles: utm, EPSG:n or quadkey:Z.")] = "utm",
    tile_px: Annotated[int, typer.Option("--tile-px", help="Side of a tile, pixels; quadkeys have their own.")] = 8192,
    resolution: Resolution = None,
    device: Device = "auto",
    backend: Backend = "auto",
    decode: Decoder = None,
    uncertainty: Uncertainty = False,
    calibration: CalibrationFile = None,
    bands: Bands = None,
    scale: Scale = None,
    nodata: Nodata = None,
    alpha: Alpha = None,
    imagery_crs: ImageryCrs = None,
    imagery_datetime: ImageryDatetime = None,
    date: Date = None,
    cloud: Cloud = None,
    off_nadir: OffNadir = None,
    sun: Sun = None,
    order: Order = None,
    offline: Offline = False,
    have_right: HaveRight = False,
    allow_outside: Outside = False,
    masks: Masks = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Map why pixels have no height.")] = False,
    dates: Annotated[bool, typer.Option("--dates", help="Map the day of acquisition.")] = False,
    force: Force = False,
    speed: Annotated[
        float | None, typer.Option(min=1e-6, help="Speed of a worker, Mpx/s, for the estimate (default: a CPU core).")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a worker's hour, for the estimate.")] = None,
    as_json: Json = False,
) -> None:
    """Decide tiles, imagery and model of a batch, and say what it will take."""
    from canopy.batch.extras import ExtrasRequest
    from canopy.batch.imagery import ImageryOptions
    from canopy.batch.planning import MPX_PER_S, BatchRequest, make_plan
    from canopy.batch.store import open_store
    from canopy.imagery.search import Search
    from canopy.prediction.default_model import default_model

    reading = ImageryOptions(
        parse_numbers("--bands", bands, int), parse_numbers("--scale", scale, float), imagery_datetime,
        parse_nodata(nodata), "auto" if alpha is None else alpha, imagery_crs, allow_outside, have_right,
    )  # fmt: skip
    request = BatchRequest(
        aoi, model or default_model(), tuple(imagery or ()), layer, grid, tile_px, resolution, device, backend,
        decode, uncertainty, calibration, reading, Search.read(date, cloud, off_nadir, sun, order), offline,
        ExtrasRequest(tuple(masks or ()), reasons, dates), force, speed or MPX_PER_S, price,
    )  # fmt: skip
    with show_progress() as report:
        planned = make_plan(request, open_store(out, make=True), report)
    say(planned.estimate.describe())
    typer.echo(json.dumps({"path": out, **planned.document}) if as_json else out)


@batch.command()
def run(
    folder: Batch,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler: tcp://host:8786.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes on this machine.")] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="One worker process for each GPU of this machine.")] = False,
    shard: Annotated[str | None, typer.Option(help="Part of the tiles for this process: i/N, i from 0.")] = None,
    attempts: Attempts = 4,
    tile_seconds: Annotated[float | None, typer.Option(min=1, help="Longest time of a tile, seconds.")] = None,
    tile_gb: Annotated[float | None, typer.Option(min=0.1, help="Largest memory of a worker process, GB.")] = None,
    term: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life after which another worker takes a tile over.")
    ] = 120.0,
    wait: Annotated[float, typer.Option(min=1, help="Longest wait for a worker of the cluster, seconds.")] = 60.0,
    scratch: Annotated[Path | None, typer.Option(help="Folder for unfinished tiles (default: the system's).")] = None,
    collect_: Annotated[bool, typer.Option("--collect/--no-collect", help="Collect after the last tile.")] = True,
    as_json: Json = False,
) -> None:
    """Compute the tiles that are not there yet; the same command goes on where a run ended."""
    from canopy.batch.collection import collect_batch
    from canopy.batch.executors import choose_pool
    from canopy.batch.plan import read_plan
    from canopy.batch.run import RunOptions, parse_shard, run_tiles
    from canopy.batch.store import open_store
    from canopy.batch.tasks import Limits

    if sum(map(bool, (scheduler, workers, gpus))) > 1:
        raise typer.BadParameter("give one of --scheduler, --workers and --gpus")
    limits = Limits(tile_seconds, tile_gb, term, scratch=str(scratch.absolute()) if scratch else None)
    run_options = RunOptions(limits, attempts, shard=parse_shard(shard))
    store = open_store(folder)
    planned = read_plan(store)
    pool: Pool = choose_pool(store.url, scheduler=scheduler, workers=workers, gpus=gpus, wait_s=wait)
    try:
        with show_progress() as report:
            summary = run_tiles(store, planned, pool, run_options, report)
            collection = collect_batch(store, planned, report) if collect_ and summary.complete else None
    finally:
        pool.close()
    for line in summary.describe():
        say(line)
    document = {**summary.to_json(), "collection": collection}
    typer.echo(json.dumps(document) if as_json else collection or store.url)
    if summary.failed:
        raise typer.Exit(1)


@batch.command()
def status(
    folder: Batch,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every ten seconds until no tile is left.")] = False,
    prometheus: Annotated[Path | None, typer.Option(help="Text file to write for Prometheus' node exporter.")] = None,
    attempts: Attempts = 4,
    as_json: Json = False,
) -> None:
    """Say what is done, runs, failed and is left."""
    from canopy.batch.ledger import read_status
    from canopy.batch.plan import read_plan
    from canopy.batch.store import open_store
    from tiles.files import replacing

    store = open_store(folder)
    planned = read_plan(store)
    while True:
        state = read_status(store, planned, attempts)
        typer.echo(json.dumps(state.to_json()) if as_json else "\n".join(describe_status(state)))
        if prometheus:
            with replacing(prometheus) as draft:
                draft.write_text(state.to_prometheus(planned.id[:12]), encoding="utf-8")
        if not watch or not (state.running or state.waiting):
            return
        time.sleep(WATCH_S)


@batch.command()
def retry(
    folder: Batch,
    only: Annotated[str | None, typer.Option(help="Reason of these failures.", metavar="REASON")] = None,
) -> None:
    """Set failures aside, so that the next run tries their tiles again."""
    from canopy.batch.failures import forget_failures
    from canopy.batch.ledger import read_failures
    from canopy.batch.store import open_store

    store = open_store(folder)
    failures = [failure for failure in read_failures(store) if only in (None, failure.reason)]
    count = forget_failures(store, failures)
    say(f"{count} tile(s) will be tried again: canopy batch run {folder}")
    typer.echo(count)


@batch.command()
def collect(folder: Batch) -> None:
    """Publish the collection of a batch whose tiles are all there: STAC, mosaic, overview, coverage and dates."""
    from canopy.batch.collection import collect_batch
    from canopy.batch.plan import read_plan
    from canopy.batch.store import open_store

    store = open_store(folder)
    with show_progress() as report:
        typer.echo(collect_batch(store, read_plan(store), report))


@batch.command("doctor")
def doctor_(
    folder: Annotated[str, typer.Argument(help="Store to test: a folder, or s3://bucket/prefix.", metavar="STORE")],
) -> None:
    """Prove that a store keeps what it is sent, and writes a name once, whoever asks at the same time."""
    from canopy.batch.doctor import examine
    from canopy.batch.store import open_store

    checks = examine(open_store(folder, make=True))
    for check in checks:
        typer.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def describe_status(state: "Status") -> list[str]:
    """Return a state in lines."""
    failed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(state.failed.items())) or "none"
    speed = "no speed yet" if state.km2_per_h is None else f"{state.km2_per_h:,.3g} km2/h"
    left = "" if state.hours_left is None else f", {state.hours_left:,.1f} h left"
    return [
        f"tiles: {state.done:,} of {state.tiles:,} done, {state.running:,} running, {state.waiting:,} waiting, "
        f"{state.skipped:,} without imagery",
        f"failed: {failed}",
        f"area: {state.km2:,.4g} of {state.total_km2:,.4g} km2, {speed}{left}",
        f"failed attempts: {state.retried:,}, {state.retried_hours:,.2f} worker hours",
        f"collection: {'published' if state.collected else 'not yet'}",
    ]
