"""Decoder stage: heights learnt from images and lidar, written as a bundle."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from canopy.dataset.scene import Scene
from canopy.errors import ModelError, TrainingError
from canopy.models.bundle import Card, Domain, Kind, read_bundle, read_card, save_bundle
from canopy.models.domain import fit_domain
from canopy.models.dpt import DETAIL, ENCODER, DPTHeights, load_stages
from canopy.models.encoders import encoder_card, read_encoder, with_positions
from canopy.models.heads import HeightBins
from canopy.models.network import BinHeights
from canopy.models.unet import UNetHeights
from canopy.models.weights import load_weights
from canopy.progress import Report, ignore
from canopy.training.config import LossWeights, TrainConfig, weight_at
from canopy.training.cost import TrainingCost
from canopy.training.held_out import ScenePrediction, held_out_intervals, predict_scene, score
from canopy.training.log import LogEntry
from canopy.training.loop import Evaluate, Supervised, fit, rehearse
from canopy.training.losses import (
    absolute,
    best_shift,
    charbonnier,
    gradient_loss,
    histogram_loss,
    patch_gradient,
    silog,
)
from canopy.training.runs import claim_run, hold_run, report_entry
from canopy.training.sampling import ChipBatch, ChipSampler, MixedBatch, MixedSampler, PoolSampler, Split, read_store
from canopy.training.token_cache import TokenCache
from canopy.training.weak_losses import WEAK_LOSSES
from canopy.version import __version__
from tiles.files import file_sha256

DOMAIN_CHIPS = 400
"""Chips that a model's domain is measured on."""
HEIGHT_LOSSES = {
    "charbonnier": charbonnier,
    "gradient": gradient_loss,
    "silog": silog,
    "l1": absolute,
    "patch_gradient": patch_gradient,
}
"""Losses of metres against metres, by their names in `LossWeights`."""
NETS: dict[Kind, Callable[[Card, float], BinHeights]] = {"dpt": DPTHeights, "unet": UNetHeights}
"""Networks to train, from a card and the rate of stochastic depth, by kind."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRecord:
    """What a model learns from and how, as its card says it."""

    data_sha256: str
    """Hash of all pixels of the data."""
    data_licences: tuple[str, ...]
    """Licences of the data, with credits."""
    train_scenes: tuple[str, ...]
    """Names of the scenes with lidar heights that are trained on."""
    train_ha: float
    """Area of the scenes with lidar heights that are trained on, hectares."""
    pseudo_scenes: int
    """Number of scenes whose heights come from another model or a renderer."""
    pseudo_ha: float
    """Area of the scenes whose heights come from another model or a renderer, hectares."""
    held_out_scenes: tuple[str, ...]
    """Names of the scenes held out."""
    held_out_ha: float
    """Area of the scenes held out, hectares."""
    steps: int
    """Steps taken, those of the bundle that training starts from included."""
    chips_per_step: int
    """Chips whose gradients are summed in one step."""
    seed: int
    """Seed of the run."""
    encoder: str
    """Name of the encoder that training starts from, or that its start was trained with; empty for none."""
    encoder_licence: str
    """Licence of that encoder; empty for none."""
    encoder_frozen: bool
    """Whether the encoder's weights stay as they are."""
    start: str = ""
    """Name of the model from which training starts, and the beginning of its SHA-256; empty for none."""
    averaged: tuple[str, ...] = ()
    """Models whose weights were averaged, as names and beginnings of their SHA-256; none after a single training."""
    weak_scenes: int = 0
    """Number of scenes with weak labels that are trained on."""
    weak_sites: tuple[str, ...] = ()
    """Sites of the scenes with weak labels."""
    weak_held_out: tuple[str, ...] = ()
    """Sites with weak labels that are held out whole."""


def train(config: TrainConfig, run: Path, *, resume: bool = False, report: Report = ignore) -> Path:
    """Train a height model and write `last.safetensors` and `best.safetensors` (lowest held-out MAE).

    Args:
        config: Data, network and recipe.
        run: Folder of the run: bundles, `log.jsonl`, `config.yaml`, `checkpoints/`.
        resume: Whether to go on from the last checkpoint, if any.
        report: Function that is called every twentieth step.

    Returns:
        Path of the best bundle.

    Raises:
        TrainingError: Data or run are unusable.
        OutputBusyError: Another process works on the run.
        OutputError: The run's folder cannot be written.
    """
    with hold_run(run, config, resume=resume), _flushed_denormals():
        prepared = prepare(config, run)
        fit(
            prepared.learner,
            prepared.batches,
            config.loop,
            run,
            resume=resume,
            evaluate=prepared.evaluate,
            report=partial(report_entry, steps=config.loop.steps, report=report),
            on_start=partial(claim_run, run, config),
            images=config.batch * config.loop.accumulate,
        )
        shutil.rmtree(run / "tokens", ignore_errors=True)
    return run / "best.safetensors"


def price(config: TrainConfig, run: Path, *, resume: bool = False) -> TrainingCost:
    """Return what `train` would cost with the same arguments, by some steps that are not kept.

    Everything is opened as for the run, so that whatever is wrong with data, weights or room is an error here too.

    Raises:
        TrainingError: Data or run are unusable, or the run is finished.
        OutputBusyError: Another process works on the run.
    """
    with hold_run(run, config, resume=resume), _flushed_denormals():
        prepared = prepare(config, run)
        return rehearse(prepared.learner, prepared.batches, config.loop, run)


@dataclass(frozen=True)
class PreparedTraining:
    """All that the first step needs."""

    learner: Supervised[ChipBatch]
    """Network and optimizer."""
    batches: Callable[[int], ChipBatch]
    """Batch by its number."""
    evaluate: Evaluate
    """What writes and scores the bundles."""


def prepare(config: TrainConfig, run: Path, *, averaged: tuple[str, ...] = ()) -> PreparedTraining:
    """Open the data and build the network of a run.

    Args:
        config: Data, network and recipe.
        run: Folder of the run; only tokens of the pool, if any, are written there.
        averaged: Models whose mean takes the network's place, for the card.

    Raises:
        TrainingError: Data or room are unusable.
        ModelError: Weights that cannot be read, or do not fit.
    """
    # Order: everything that can be wrong with data, weights or room is opened before the first step, which claims
    # the folder; and the network is built from the seed before anything else draws from torch's generator.
    split = read_store(config.store, config.batch, config.loop.seed, weak=config.weak_batch > 0)
    split.check_scale(config)
    sampler = ChipSampler(split, config.augmentation, config.batch, config.loop.seed)
    record = replace(training_record(config, split), averaged=averaged)
    card = make_card(config, record)
    net = start_net(config, card, split)
    card = card.model_copy(update={"domain": measure_domain(sampler, card.chip_px)})
    # before the learner, which builds optimizer and average from the parameters on their device
    net = net.to("cuda" if torch.cuda.is_available() else "cpu")
    batches: Callable[[int], ChipBatch] = sampler.draw_batch
    if config.pool:
        tokens = TokenCache(cast(DPTHeights, net), run / "tokens", config.pool, sampler.augmentation.chip_px)
        batches = PoolSampler(sampler, config.pool, tokens).draw_batch
    if split.weak is not None:
        batches = MixedSampler.of(sampler, split.weak, config.weak_batch).draw_batch
    loss = partial(height_loss, weights=config.loss, steps=config.loop.steps)
    learner = Supervised[ChipBatch](net, loss, config.loop, {ENCODER: config.encoder_rate, DETAIL: config.detail_rate})
    return PreparedTraining(learner, batches, _Evaluation(run, card, record, split.test))


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Let the processor take numbers too small to matter as 0, without which a step may take ten times as long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def training_record(config: TrainConfig, split: Split) -> TrainingRecord:
    """Return what a model learns from and how, before its first step."""
    lidar = [scene for scene in split.train if not scene.pseudo]
    pseudo = [scene for scene in split.train if scene.pseudo]
    start = read_card(config.start).training if config.start else {}
    encoder, encoder_licence = _encoder_origin(config) or (start.get("encoder", ""), start.get("encoder_licence", ""))
    return TrainingRecord(
        data_sha256=split.sha256,
        data_licences=split.licences,
        train_scenes=tuple(scene.name for scene in lidar),
        train_ha=_hectares(lidar),
        pseudo_scenes=len(pseudo),
        pseudo_ha=_hectares(pseudo),
        held_out_scenes=tuple(scene.name for scene in split.test),
        held_out_ha=_hectares(split.test),
        steps=start.get("steps", 0),
        chips_per_step=config.batch * config.loop.accumulate,
        seed=config.loop.seed,
        encoder=encoder,
        encoder_licence=encoder_licence,
        encoder_frozen=config.encoder_rate == 0,
        start=model_name(config.start) if config.start else "",
        weak_scenes=len(split.weak.train) if split.weak else 0,
        weak_sites=split.weak.sites if split.weak else (),
        weak_held_out=split.weak.held_out if split.weak else (),
    )


def _encoder_origin(config: TrainConfig) -> tuple[str, str] | None:
    """Return name and licence of the encoder that a configuration names, or None where it names none."""
    name, licence = config.architecture.encoder, "unknown"
    if config.encoder:
        card = encoder_card(config.encoder)
        name, licence = card.name, card.licence
    elif not config.encoder_weights:
        return None
    # a file has no card that could say more
    return (f"{name} of {config.encoder_weights.name}" if config.encoder_weights else name), licence


def model_name(path: Path) -> str:
    """Return the name of a model in a bundle, and the beginning of the bundle's SHA-256."""
    return f"{read_card(path).name} {file_sha256(path)[:12]}"


def _hectares(scenes: Sequence[Scene]) -> float:
    return round(sum(scene.height_m.size * scene.cell_m**2 for scene in scenes) / 1e4, 2)


def make_card(config: TrainConfig, record: TrainingRecord) -> Card:
    """Return the card of a model to be trained; its scores are still to come."""
    return Card(
        name=config.name,
        family=config.architecture.kind,
        architecture=config.architecture,
        head=config.head,
        decode=config.decode,
        gsd_m=config.gsd_m,
        chip_px=config.chip_px,
        mean=config.mean,
        std=config.std,
        canopy_version=__version__,
        licence=config.licence,
        provisional=config.provisional,
        notes=config.notes,
        training=asdict(record),
    )


def measure_domain(sampler: ChipSampler, chip_px: int) -> Domain:
    """Measure what the images with lidar heights, if any, look like, on chips that are not recoloured.

    Chips recoloured as for training would span anything, clouds too; and rendered scenes look like no place.

    Args:
        sampler: Sampler of the training chips.
        chip_px: Side of the chips that the model will map, pixels.
    """
    split = sampler.split
    lidar = np.array([not scene.pseudo for scene in split.train])
    if lidar.any() and not lidar.all():
        chances = split.chances[lidar] / split.chances[lidar].sum()
        split = replace(split, train=tuple(scene for scene in split.train if not scene.pseudo), chances=chances)
    plain = replace(sampler.augmentation, chip_px=chip_px, colour=0.0, shadows=0.0, mix=0.0)
    sampler = replace(sampler, split=split, augmentation=plain)
    batches = (sampler.draw_batch(number)[0] for number in range(-(-DOMAIN_CHIPS // sampler.batch)))
    return fit_domain(image.numpy() for batch in batches for image in batch)


def start_net(config: TrainConfig, card: Card, split: Split) -> BinHeights:
    """Build the network with the weights that training starts from.

    Raises:
        TrainingError: Weights for a detail network that the architecture does not have, or a start, an encoder or
            positions that differ.
        ModelError: Weights that cannot be read, or do not fit.
    """
    # Order matters: what is random is drawn first, from the seed alone; then weights that are read replace it, those
    # of a whole bundle before those of an encoder.
    torch.manual_seed(config.loop.seed)
    net = NETS[config.architecture.kind](card, config.drop_path)
    start_head(cast(nn.Conv2d, net.head[-1]), net.bins, split)
    if isinstance(net, UNetHeights) and config.encoder_weights:
        load_stages(net.encoder, config.encoder_weights)
    if isinstance(net, DPTHeights) and config.detail_weights:
        if net.detail is None:
            raise TrainingError("detail_weights are given, but architecture.detail names no detail network")
        load_stages(net.detail.stages, config.detail_weights)
    if config.start:
        take_start(net, card, config.start)
    if isinstance(net, DPTHeights):
        if config.encoder:
            take_encoder(net, card, config.encoder, config.encoder_weights)
        if config.encoder_rate == 0:
            net.freeze_encoder()
        if config.detail_rate == 0:
            net.freeze_detail()
    if config.fix_statistics:
        net.fix_statistics()
    return net


def take_start(net: BinHeights, card: Card, bundle: Path) -> None:
    """Give a network the weights of a height model.

    Raises:
        TrainingError: The height model is of another kind, or its positions have another reference.
        ModelError: Weights that cannot be read, or do not fit.
    """
    start = read_bundle(bundle)
    # No weight shows the reference: the positions of another one are those of another ground.
    for name in ("kind", "reference_gsd_m"):
        actual, expected = getattr(start.card.architecture, name), getattr(card.architecture, name)
        if actual != expected:
            raise TrainingError(
                f"start {bundle}: its {name} is {actual}, the configuration's {expected}: name the same in architecture"
            )
    load_weights(net, start.weights, bundle)


@torch.no_grad()
def start_head(head: nn.Conv2d, bins: HeightBins, split: Split) -> None:
    """Let a head begin with how common each height is, as its bias, instead of at the mean of the bins.

    A rare class is then no surprise at first (Lin et al. 2017, section 3.3), and no steps are spent on learning it.

    Args:
        head: Last convolution, of one channel a bin.
        bins: Height bins.
        split: Split whose training heights are counted, each scene by its chance to be drawn.
    """
    counts = torch.zeros(bins.bins)
    for scene, chance in zip(split.train, split.chances, strict=True):
        height_m = torch.from_numpy(scene.height_m[~np.isnan(scene.height_m)])
        numbers = bins.position(height_m).long().clamp(max=bins.bins - 1)
        counts += chance * torch.bincount(numbers, minlength=bins.bins) / max(1, height_m.numel())
    assert head.bias is not None
    # A hundredth of the mass is spread evenly: the logarithm of a height that never occurs would be -inf.
    head.bias.copy_(torch.log(counts + counts.sum() / (100 * bins.bins)))


def take_encoder(net: DPTHeights, card: Card, bundle: Path, published: Path | None = None) -> None:
    """Give a network an encoder that `read_encoder` reads, its position embeddings brought to the network's size.

    Raises:
        ModelError: The encoder cannot be read.
        TrainingError: The bundle's encoder is another network, or sees images normalised otherwise.
    """
    source, weights = read_encoder(bundle, published=published)
    for name, expected, actual in (
        ("encoder", card.architecture.encoder, source.architecture.encoder),
        ("encoder_args", card.architecture.encoder_args, source.architecture.encoder_args),
        *(
            (name, getattr(card.architecture, name), getattr(source.architecture, name))
            for name in ("stem", "positions", "reference_gsd_m")
        ),
        ("mean", card.mean, source.mean),
        ("std", card.std, source.std),
    ):
        if expected != actual:
            raise TrainingError(f"encoder {bundle}: its {name} is {actual}, the configuration's {expected}")
    prefix = "" if source.family == "encoder" else ENCODER
    own = net.dpt.encoder.model.state_dict()
    stripped = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
    state = {name: torch.from_numpy(array).float() for name, array in stripped.items() if name in own}
    state = with_positions(net.dpt.encoder.model, state)
    # The classifier and the last norm feed no tap, and bundles of height models lack them.
    missing = [name for name in own if name not in state and not name.startswith(("head.", "norm."))]
    if missing or any(value.shape != own[name].shape for name, value in state.items()):
        raise TrainingError(f"encoder {bundle} does not fit {card.architecture.encoder}: {missing[:3] or 'shapes'}")
    net.dpt.encoder.model.load_state_dict({**own, **state})


def height_loss(net: nn.Module, batch: ChipBatch, step: int, weights: LossWeights, steps: int) -> Tensor:
    """Return the weighted sum of the loss terms of a network on a batch of chips.

    Args:
        net: Network with `bins` that ends in logits over them.
        batch: Images, heights and, of a pool, tokens; or such chips and chips with weak labels.
        step: Number of the step.
        weights: Weight of each term, constant or a ramp.
        steps: Steps of the whole run, over which ramps extend.
    """
    device = next(net.parameters()).device
    bins = cast(HeightBins, net.bins)
    terms: dict[str, Callable[[], Tensor]] = {}
    if isinstance(batch, MixedBatch):
        # One pass of all chips: normalisation, where it follows the batch, sees both kinds of ground.
        count = len(batch.measured[0])
        image, labels = (part.to(device, non_blocking=True) for part in batch.weak)
        logits = net(torch.cat([batch.measured[0].to(device, non_blocking=True), image]))
        logits, weak_logits = logits[:count], logits[count:]
        height_m = batch.measured[1].to(device, non_blocking=True)
        terms = {name: partial(loss, weak_logits, labels, bins) for name, loss in WEAK_LOSSES.items()}
    else:
        image, height_m, *taps = (part.to(device, non_blocking=True) for part in batch)
        logits = net(image, *taps)
    pred_m = bins.height_m(logits)
    height_m = best_shift(pred_m, height_m, weights.shift_cells)
    valid = ~torch.isnan(height_m)
    terms |= {
        "histogram": lambda: histogram_loss(logits, height_m, valid, bins),
        **{name: partial(loss, pred_m, height_m, valid) for name, loss in HEIGHT_LOSSES.items()},
    }
    # A term of weight 0 is not computed at all: 0 times an infinite gradient would be NaN.
    weight_of = {name: weight_at(getattr(weights, name), step / steps) for name in terms}
    return torch.stack([weight_of[name] * term() for name, term in terms.items() if weight_of[name] > 0]).sum()


class _Evaluation:
    """Scores the averaged network on held-out ground, and writes the last and the best bundle.

    Args:
        run: Folder of the bundles.
        card: Card without scores.
        record: What the model learns from, before the first step.
        test: Scenes held out.
    """

    def __init__(self, run: Path, card: Card, record: TrainingRecord, test: Sequence[Scene]) -> None:
        self._run, self._card, self._record, self._test = run, card, record, test
        self._best_m = self._best_so_far()

    def _best_so_far(self) -> float:
        """Return the error of the best bundle of an earlier part of the run; infinity where there is none."""
        best = self._run / "best.safetensors"
        if not best.is_file():
            return float("inf")
        try:
            mae_m = read_card(best).metrics.get("all", {}).get("mae_m")
        except ModelError as error:
            _LOG.warning("%s; the next bundle replaces it", error)
            return float("inf")
        return float("inf") if mae_m is None else float(mae_m)

    def __call__(self, net: nn.Module, step: int) -> LogEntry:
        assert isinstance(net, BinHeights)
        predictions = [
            ScenePrediction(scene, predict_scene(net, scene, self._card.chip_px, self._card.decode))
            for scene in self._test
        ]
        groups = score(predictions)
        metrics = {name: group.to_json() for name, group in groups.items()}
        held_out = held_out_intervals(predictions)
        record = replace(self._record, steps=self._record.steps + step + 1)
        card = self._card.model_copy(
            update={
                "metrics": metrics,
                "training": asdict(record),
                "intervals": held_out.intervals if held_out else None,
                "coverage": held_out.coverage_json() if held_out else {},
            }
        )
        # half precision halves a bundle; checkpoints keep every bit
        weights = {name: _half(tensor) for name, tensor in net.state_dict().items()}
        save_bundle(self._run / "last.safetensors", card, weights)
        # Without held-out ground the latest network counts as the best.
        mae_m = groups["all"].scores.mae_m if groups else -float(step)
        if mae_m is not None and mae_m < self._best_m:
            self._best_m = mae_m
            save_bundle(self._run / "best.safetensors", card, weights)
        return {"metrics": metrics}


def _half(tensor: Tensor) -> np.ndarray:
    """Return an array in half precision, integers as they are."""
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array.astype(np.float16) if tensor.is_floating_point() else array
