"""Self-supervised training: from unlabelled tiles to a bundle of an encoder."""

import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from canopy.config import load_config
from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import RGB, Card
from canopy.models.encoders import encoder_card
from canopy.progress import Report, ignore
from canopy.training.cost import TrainingCost
from canopy.training.loop import fit, rehearse
from canopy.training.ranks import rank, together, whole
from canopy.training.runs import RECORD, claim_run, has_run, hold_run, report_entry
from canopy.version import __version__
from pretrain.batch import TileBatch, crops_at, draw_batch
from pretrain.config import CropConfig, DistillConfig, PretrainConfig, ProbeConfig
from pretrain.data import Tiles, read_tiles
from pretrain.dinov2 import Distiller, SelfDistillation
from pretrain.encoder import is_published, save_encoder
from pretrain.monitors import CollapseError, CollapseSigns

TILES_CHECKED = 1000
ROUNDING = 1e-3
"""Share by which a crop may exceed its tile: a measured GSD differs from the nominal one in the fourth digit."""
_LOG = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig,
    run: Path,
    *,
    resume: bool = False,
    teacher: Distiller | None = None,
    report: Report = ignore,
) -> Path:
    """Pretrain an encoder and write its moving average as `last.safetensors`.

    Args:
        config: The recipe and its data.
        run: Folder of the run: the bundle, `log.jsonl`, `config.yaml`, `checkpoints/`.
        resume: Whether to go on from the last checkpoint, if there is one.
        teacher: Network that gives the targets, frozen; the student's moving average if None.
        report: Receiver of the progress, called every twentieth step.

    Returns:
        Path of the bundle.

    Raises:
        ConfigError: Crops that patches do not fill, or an encoder that timm does not know.
        TrainingError: Data or run are unusable.
        CollapseError: The run ended collapsed; its bundle and checkpoints are written all the same.
    """
    if resume:
        config = lengthened(config, run)
    # Order: ranks, lock, networks, data, first step; only then is the folder claimed, for all of them are good.
    # A process learns its rank when it joins the others: asked before, each is rank 0 and takes the lock.
    with together(config.scale.timeout_min) as device, _locked(run, config, resume=resume):
        prepared = prepare(config, teacher, device)
        fit(
            prepared.learner,
            prepared.batches,
            config.loop,
            run,
            resume=resume,
            evaluate=_Export(run / "last.safetensors", config, prepared.tiles),
            report=partial(report_entry, steps=config.loop.steps, report=report),
            on_start=partial(claim_run, run, config),
            images=config.batch * config.loop.accumulate,
        )
        if rank() == 0:
            require_health(config, run)
    return run / "last.safetensors"


def price(config: PretrainConfig, run: Path, *, resume: bool = False, teacher: Distiller | None = None) -> TrainingCost:
    """Return what `pretrain` would cost with the same arguments, by some steps that are not kept.

    Raises:
        ConfigError: Crops that patches do not fill, or an encoder that timm does not know.
        TrainingError: Data or run are unusable, or the run is finished.
    """
    if resume:
        config = lengthened(config, run)
    with together(config.scale.timeout_min) as device, _locked(run, config, resume=resume):
        prepared = prepare(config, teacher, device)
        return rehearse(prepared.learner, prepared.batches, config.loop, run)


def _locked(run: Path, config: PretrainConfig, *, resume: bool) -> AbstractContextManager[None]:
    """Return the lock of a run for rank 0, which alone writes; the other ranks need none."""
    return hold_run(run, config, resume=resume, goes_on=goes_on) if rank() == 0 else nullcontext()


@dataclass(frozen=True)
class PreparedPretraining:
    """All that the first step needs."""

    learner: SelfDistillation
    """Networks, objective and optimizer."""
    batches: Callable[[int], TileBatch]
    """Batch by its number."""
    tiles: Tiles
    """Unlabelled tiles."""


def prepare(config: PretrainConfig, teacher: Distiller | None, device: torch.device) -> PreparedPretraining:
    """Build the networks of a run and open its tiles.

    Args:
        config: The recipe and its data.
        teacher: Network that gives the targets, frozen; the student's moving average if None.
        device: Device of the networks.

    Raises:
        ConfigError: Crops that patches do not fill, or an encoder that timm does not know.
        TrainingError: The data are unusable.
    """
    learner = SelfDistillation(config, device, teacher)
    patch_px = learner.student.encoder.patch_px
    check_crops(config, patch_px)
    tiles = read_tiles(config.tiles)
    check_tiles(config, tiles)
    return PreparedPretraining(learner, partial(draw_batch, tiles=tiles, config=config, patch_px=patch_px), tiles)


def lengthened(config: PretrainConfig, run: Path) -> PretrainConfig:
    """Return the recipe of a run that may have more steps than it began with: its phases stay where they were.

    Args:
        config: The recipe, `loop.steps` perhaps larger than recorded.
        run: Folder of the run.

    Raises:
        TrainingError: The rates of the run follow a cosine over its steps, so that a longer one is another run.
    """
    if config.schedule.steps is not None or not has_run(run):
        return config
    recorded = load_config(run / RECORD, type(config))
    began_with = recorded.schedule_steps
    if config.loop.steps <= began_with:
        return config
    if config.schedule.kind == "cosine" and recorded.schedule.steps is None:
        raise TrainingError(
            f"{run} follows a cosine over {began_with} steps and cannot have {config.loop.steps}: only runs with "
            "schedule.kind: constant or schedule.steps can be lengthened; `start:` begins a new run from its encoder"
        )
    return config.model_copy(update={"schedule": config.schedule.model_copy(update={"steps": began_with})})


def goes_on(recorded: PretrainConfig, config: PretrainConfig) -> bool:
    """Return whether a recipe is the recorded one with at least as many steps."""

    def as_long(recipe: PretrainConfig) -> PretrainConfig:
        loop = recipe.loop.model_copy(update={"steps": config.loop.steps})
        schedule = recipe.schedule.model_copy(update={"steps": recipe.schedule_steps})
        return recipe.model_copy(update={"loop": loop, "schedule": schedule})

    return config.loop.steps >= recorded.loop.steps and as_long(config) == as_long(recorded)


def require_health(config: PretrainConfig, run: Path) -> None:
    """Refuse to call a run done whose teacher no longer distinguished images when that was last measured.

    The log is read rather than the learner: a run that is resumed after its last step says the same as before.

    Args:
        config: The recipe.
        run: Folder of the run.

    Raises:
        CollapseError: The run ended collapsed.
    """
    path = run / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # a line torn by a kill has no closing brace
    entries = [json.loads(line) for line in lines if '"information"' in line and line.endswith("}")]
    # Class tokens are judged by their prototypes, which nothing trains without DINO.
    if not config.terms.dino or not entries:
        return
    last = entries[-1]
    if last["step"] < max(1, config.schedule.warmup * config.schedule_steps):
        return  # an untrained teacher distinguishes no images
    signs = CollapseSigns(**{field.name: last[field.name] for field in fields(CollapseSigns)})
    if warning := signs.warning():
        raise CollapseError(
            f"{run} ended in a {warning}, measured at step {last['step']}; its encoder is written, but of little use: "
            f"{signs.remedy()}, and name another --out"
        )


def check_crops(config: PretrainConfig, patch_px: int) -> None:
    """Refuse crops that are not whole patches, and masks that hide no patch.

    Args:
        config: The recipe.
        patch_px: Side of the encoder's patches.

    Raises:
        ConfigError: A crop's side is not a multiple of the patch, or no patch is masked.
    """
    for step in (0, config.loop.steps):
        global_crops, local_crops = crops_at(step, config)
        for crops in (global_crops, local_crops):
            if crops.px % patch_px:
                raise ConfigError(f"crops of {crops.px} px: a multiple of the encoder's patch, {patch_px} px, expected")
        most = round(config.masks.ratio[1] * (global_crops.px // patch_px) ** 2)
        if config.terms.ibot and not most:
            raise ConfigError(
                f"masks.ratio of {config.masks.ratio[1]:g} masks no patch of global crops of {global_crops.px} px: "
                "a larger ratio expected"
            )


def check_tiles(config: PretrainConfig, tiles: Tiles) -> None:
    """Refuse tiles that are fewer than a batch or smaller than every crop; log the share of crops that are cut short.

    Args:
        config: The recipe.
        tiles: All tiles, of which up to 1,000 are looked at.

    Raises:
        TrainingError: A batch would repeat tiles.
        ConfigError: No crop fits into a tile.
    """
    if len(tiles) < config.batch:
        raise TrainingError(f"{len(tiles)} tiles for a batch of {config.batch}: a smaller batch or more tiles expected")
    # Evenly spaced numbers: sources lie one after the other, so each is looked at.
    numbers = range(0, len(tiles), max(1, len(tiles) // TILES_CHECKED))
    gsds_m = [tiles.gsd_m(number) for number in numbers]
    kinds = ("global_crops", "local_crops")
    for step in dict.fromkeys((0, config.loop.steps - 1)):
        for name, crops in zip(kinds, crops_at(step, config), strict=True):
            shares = [_clipped(crops, config.gsd_m, config.tiles.tile_px * gsd_m) for gsd_m in gsds_m]
            share = sum(shares) / len(shares) if crops.count else 0.0
            if share == 1:
                reach_m = crops.px * crops.gsd[0] * config.gsd_m
                tile_m = config.tiles.tile_px * max(gsds_m)
                raise ConfigError(
                    f"{name} of {crops.px} px cover {reach_m:g} m and more, tiles of {config.tiles.tile_px} px at most "
                    f"{tile_m:g} m: a larger tiles.tile_px, or a smaller px or gsd of the crops, expected"
                )
            if share > 0:
                _LOG.warning(
                    "%.0f %% of the %s of %d px would reach beyond their tile: they are cut to its side, at a finer "
                    "GSD than drawn; a larger tiles.tile_px or a smaller gsd of the crops avoids it",
                    100 * share, name, crops.px,
                )  # fmt: skip
    if config.terms.gram and config.gram.resolution > 1:
        _log_enlarged(config, gsds_m)


def _log_enlarged(config: PretrainConfig, gsds_m: list[float]) -> None:
    """Log the share of global crops of which imagery of these GSDs has no more to show to a Gram teacher."""
    crops = config.global_crops
    # what is coarser than a pixel of the tile is what would exceed a tile of as many pixels as the crop
    share = sum(1 - _clipped(crops, config.gsd_m, crops.px * gsd_m) for gsd_m in gsds_m) / len(gsds_m)
    if share > 0:
        _LOG.warning(
            "%.0f %% of the global_crops are no coarser than their imagery: the Gram teacher sees these enlarged, not "
            "sharper; a coarser gsd of global_crops leaves gram.resolution: %d more to show",
            100 * share, config.gram.resolution,
        )  # fmt: skip


def _clipped(crops: CropConfig, nominal_gsd_m: float, tile_m: float) -> float:
    """Return the share of crops, their GSD uniform in its logarithm, that are larger than a tile."""
    # P(g > limit) = log(high / limit) / log(high / low) for log g uniform between log low and log high
    low, high = crops.gsd
    limit = tile_m / (crops.px * nominal_gsd_m) * (1 + ROUNDING)
    if limit >= high or limit < low:
        return float(limit < low)
    return math.log(high / limit) / math.log(high / low)


def _origin(path: Path) -> dict[str, str]:
    """Return name and licence of the weights that a recipe starts or learns from."""
    if path.is_dir():  # a run
        recipe = load_config(path / "config.yaml", PretrainConfig)
        return {"name": recipe.name, "licence": recipe.licence}
    if is_published(path):
        return {"name": path.name, "licence": "unknown"}
    card = encoder_card(path)
    return {"name": card.name, "licence": card.licence}


def _probed(bundle: Path, config: ProbeConfig, steps: int) -> dict[str, float | None]:
    """Return R2 of height and cover on an encoder's features, and log them."""
    from pretrain.probe import probe  # needs GDAL, which the rest of the stage does not

    ground = probe(bundle, config.pairs, enlarge=config.enlarge, untrained=1).ground
    scores = {f"{c.target}_{c.method}": c.scores["encoder"].r2 for c in ground.comparisons}
    r2s = ", ".join(f"{name} {'none' if r2 is None else f'{r2:.3f}'}" for name, r2 in scores.items())
    _LOG.info("step %d  probe R2: %s", steps, r2s)
    return scores


class _Export:
    """Writes the averaged encoder with a card that names its data and its recipe."""

    def __init__(self, path: Path, config: PretrainConfig, tiles: Tiles) -> None:
        self._path, self._config, self._tiles = path, config, tiles

    def __call__(self, average: nn.Module, step: int) -> dict[str, Any]:
        """Write the encoder of a step; all ranks must call it, for each has a share of the weights."""
        encoder: Any = average.encoder
        # All ranks take part in putting shards together, rank 0 alone writes.
        weights = whole(encoder.vit.state_dict())
        entry: dict[str, Any] = {"exported": self._path.name}
        if rank() == 0:
            save_encoder(self._path, self._card(step), weights)
            if self._config.probe is not None:
                entry["probe"] = _probed(self._path, self._config.probe, step + 1)
        return entry

    def _card(self, step: int) -> Card:
        """Describe the encoder after a step."""
        config = self._config
        images = config.batch * config.loop.accumulate
        recipe = config.model_dump(mode="json", exclude={"tiles", "name", "notes", "probe"})
        if weights := config.features.weights:
            recipe["features"]["weights"] = weights.name  # the folder means nothing on another machine
        if config.start:
            recipe["start"] = _origin(config.start)
        if isinstance(config, DistillConfig):
            recipe["teacher"] = _origin(config.teacher)
        training = {
            "recipe": recipe,
            "data_sha256": self._tiles.sha256,
            "data_licences": list(config.tiles.licences),
            "tiles": len(self._tiles),
            "steps": step + 1,
            "images_seen": (step + 1) * images,
        }
        return Card(
            name=config.name,
            family="encoder",
            architecture=config.architecture,
            gsd_m=config.gsd_m,
            bands=(*RGB, *(f"band_{number}" for number in range(4, config.tiles.bands + 1))),
            chip_px=crops_at(config.loop.steps, config)[0].px,
            mean=config.mean,
            std=config.std,
            canopy_version=__version__,
            licence=config.licence,
            provisional=True,
            notes=config.notes,
            training=training,
        )
