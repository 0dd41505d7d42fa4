"""Decoder stage: heights learnt from images and lidar, written as a bundle."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from canopy import __version__
from canopy.bundle import Card, Domain, HeightIntervals, read_bundle, read_card, save_bundle
from canopy.config import Config, LossWeights, TrainConfig, dump_config, load_config, weight_at
from canopy.domain import fit_domain
from canopy.errors import TrainingError
from canopy.evaluation import Heights, height_metrics
from canopy.intervals import FEWEST_CELLS, coverage, fit_intervals, raw_interval_m, widened
from canopy.loop import fit
from canopy.losses import absolute, best_shift, charbonnier, gradient_loss, histogram_loss, patch_gradient, silog
from canopy.models.dpt import ENCODER, DPTHeights, load_stages
from canopy.models.encoders import encoder_card, read_encoder, with_positions
from canopy.models.heads import HeightBins
from canopy.models.model import load_weights
from canopy.scenes import (
    Chip,
    Scene,
    Split,
    cast_shadows,
    draw_chip,
    jitter_colour,
    jitter_sharpness,
    mix_chips,
    read_store,
)
from canopy.tokens import KeptTokens

ChipBatch = Chip | tuple[Tensor, Tensor, Tensor]
"""Chips stacked along a first dimension; those of a pool with their tokens (taps, B, C, h, w)."""


class BinNet(Protocol):
    """A network that ends in logits over height bins at half of the image's resolution."""

    bins: HeightBins

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, bins, H / 2, W / 2)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""
        ...


def train(config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train a height model and write `last.safetensors` and `best.safetensors` (lowest held-out MAE).

    Args:
        config: What to train, on what.
        run: Folder of the run: bundles, `log.jsonl`, `config.yaml`, `checkpoints/`.
        resume: Go on from the last checkpoint, if any.

    Returns:
        Path of the best bundle.

    Raises:
        TrainingError: Data or run are unusable.
    """
    claim_run(run, config, resume)
    split = read_split(config)
    card = make_card(config, split)
    net = start_net(config, card, split)
    card = card.model_copy(update={"domain": measure_domain(config, split)})
    net = net.to("cuda" if torch.cuda.is_available() else "cpu")
    batches: Callable[[int], ChipBatch] = partial(draw_batch, split=split, config=config)
    if config.pool:
        tokens = KeptTokens(net, run / "tokens", config.pool, config.drawn_px)
        batches = partial(draw_pooled, split=split, config=config, tokens=tokens)
    fit(
        net,
        partial(height_loss, weights=config.loss, steps=config.loop.steps),
        batches,
        config.loop,
        run,
        resume=resume,
        evaluate=_Evaluation(run, card, split),
        report=partial(print_entry, steps=config.loop.steps),
        slow=(ENCODER, config.encoder_rate),
    )
    shutil.rmtree(run / "tokens", ignore_errors=True)
    return run / "best.safetensors"


def read_split(config: TrainConfig) -> Split:
    """Scenes to train on and scenes held out.

    Raises:
        TrainingError: The scenes are unusable.
        DatasetError: The store is.
    """
    return read_store(config.store, config.batch, config.loop.seed)


def measure_domain(config: TrainConfig, split: Split) -> Domain:
    """What the images with lidar heights, if any, look like: chips as large as those mapped, drawn but not recoloured.

    Recoloured as for training they would hold anything, clouds too; and rendered ones look like no place.
    """
    lidar = np.array([not scene.pseudo for scene in split.train])
    if lidar.any() and not lidar.all():
        chances = split.chances[lidar] / split.chances[lidar].sum()
        split = replace(split, train=tuple(scene for scene in split.train if not scene.pseudo), chances=chances)
    plain = config.model_copy(update={"colour": 0.0, "shadows": 0.0, "mix": 0.0, "crop_px": None})
    batches = (draw_batch(number, split, plain)[0] for number in range(-(-DOMAIN_CHIPS // config.batch)))
    return fit_domain(image.numpy() for batch in batches for image in batch)


DOMAIN_CHIPS = 400


def start_net(config: TrainConfig, card: Card, split: Split) -> DPTHeights:
    """The network with the weights that training starts from."""
    torch.manual_seed(config.loop.seed)
    net = DPTHeights(card, drop_path=config.drop_path)
    start_head(cast(nn.Conv2d, net.head[-1]), net.bins, split)
    if config.detail_weights:
        if net.detail is None:
            raise TrainingError("detail_weights are given, but architecture.detail names no detail network")
        load_stages(net.detail.stages, config.detail_weights)
    if config.start:
        load_weights(net, read_bundle(config.start)[1], config.start)
    if config.encoder:
        take_encoder(net, card, config.encoder)
    if config.encoder_rate == 0:
        net.freeze_encoder()
    return net


@torch.no_grad()
def start_head(head: nn.Conv2d, bins: HeightBins, split: Split) -> None:
    """Let a head begin with how common each height is, as its bias, instead of at the mean of the bins.

    A rare class is then no surprise at first (Lin et al. 2017, section 3.3), and no steps are spent on learning it.

    Args:
        head: Last convolution, of one channel a bin.
        bins: Height bins.
        split: Whose training heights are counted, each scene by its chance to be drawn.
    """
    counts = torch.zeros(bins.bins)
    for scene, chance in zip(split.train, split.chances, strict=True):
        known = torch.from_numpy(scene.height_m[~np.isnan(scene.height_m)])
        at = bins.position(known).long().clamp(max=bins.bins - 1)
        counts += chance * torch.bincount(at, minlength=bins.bins) / max(1, known.numel())
    assert head.bias is not None
    head.bias.copy_(torch.log(counts + counts.sum() / (100 * bins.bins)))


def take_encoder(net: DPTHeights, card: Card, bundle: Path) -> None:
    """Give a network the encoder of a bundle or of timm, its position embeddings brought to the network's size.

    Raises:
        ModelError: As of `read_encoder`.
        TrainingError: The bundle's encoder is another network, or sees images normalised otherwise.
    """
    given, weights = read_encoder(bundle)
    for name, own, theirs in (
        ("encoder", card.architecture.encoder, given.architecture.encoder),
        ("encoder_args", card.architecture.encoder_args, given.architecture.encoder_args),
        ("mean", card.mean, given.mean),
        ("std", card.std, given.std),
    ):
        if own != theirs:
            raise TrainingError(f"encoder {bundle}: its {name} is {theirs}, the configuration's {own}")
    prefix = "" if given.family == "encoder" else ENCODER
    state = net.dpt.encoder.model.state_dict()
    found = {name[len(prefix) :]: torch.from_numpy(a).float() for name, a in weights.items() if name.startswith(prefix)}
    taken = {name: value for name, value in found.items() if name in state}
    taken = with_positions(net.dpt.encoder.model, taken)
    missing = [name for name in state if name not in taken and not name.startswith(("head.", "norm."))]
    if missing or any(value.shape != state[name].shape for name, value in taken.items()):
        raise TrainingError(f"encoder {bundle} does not fit {card.architecture.encoder}: {missing[:3] or 'shapes'}")
    net.dpt.encoder.model.load_state_dict({**state, **taken})


def claim_run(run: Path, config: Config, resume: bool) -> None:
    """Make the folder of a run, or take up the one there, whose configuration must be the same."""
    record = run / "config.yaml"
    if record.is_file() and not resume:
        raise TrainingError(f"{run} holds a run: pass --resume to go on with it, or name another folder with --out")
    if record.is_file() and load_config(record, type(config)) != config:
        raise TrainingError(f"{record} differs from the configuration given: resume with that, or name another --out")
    run.mkdir(parents=True, exist_ok=True)
    dump_config(config, record)


Predicted = list[tuple[Scene, Heights]]
"""Scenes never trained on, each with its height and raw interval (3, H, W)."""


def score(predictions: Predicted) -> dict[str, Any]:
    """Held-out metrics at the heights' own cells: under ``all`` and under each group of scenes."""
    groups = {"all": predictions}
    for scene, heights in predictions:
        groups.setdefault(scene.group, []).append((scene, heights))
    return {
        name: {
            "scenes": len(members),
            **height_metrics([(h[0], s.height_m) for s, h in members], members[0][0].cell_m),
        }
        for name, members in groups.items()
    }


@torch.inference_mode()
def predict_scene(net: BinNet, scene: Scene, chip_px: int = 256) -> Heights:
    """Height and raw 90 % interval of a scene at its own cells, mirrored to whole chips, which do not overlap.

    Args:
        net: In eval mode.
        scene: Image and heights.
        chip_px: Side of a chip.

    Returns:
        (3, H, W) float32 metres.
    """
    rows, cols = scene.image.shape[1:]
    pad = [
        (0, 0),
        (0, max(chip_px, -(-rows // 32) * 32) - rows),
        (0, max(chip_px, -(-cols // 32) * 32) - cols),
    ]
    padded = np.pad(scene.image, pad, mode="symmetric")
    starts = [_starts(length, chip_px) for length in padded.shape[1:]]
    total = np.zeros((3, padded.shape[1] // 2, padded.shape[2] // 2), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    device = next(net.parameters()).device
    for row in starts[0]:
        for col in starts[1]:
            chip = torch.from_numpy(padded[:, row : row + chip_px, col : col + chip_px]).float().div(255)
            chip_m = raw_interval_m(net.bins, net(chip[None].to(device)))[0].cpu().numpy()
            where = np.s_[row // 2 : (row + chip_px) // 2, col // 2 : (col + chip_px) // 2]
            total[:, *where] += chip_m
            count[where] += 1
    return (total / count)[:, : rows // 2, : cols // 2].astype(np.float32)


def held_out_intervals(predictions: Predicted) -> tuple[HeightIntervals | None, dict[str, Any]]:
    """The interval's calibration on all held-out ground, and its coverage; None where that ground is too small.

    For the coverage, half of the ground, in squares of 64 m like those of a chessboard, tests what the other half
    calibrated, and the reverse.
    """
    raw = np.concatenate([made.reshape(3, -1) for _, made in predictions], axis=1)
    truth = np.concatenate([scene.height_m.ravel() for scene, _ in predictions])
    half = np.concatenate([_chessboard(scene, number) for number, (scene, _) in enumerate(predictions)])
    if min((half & ~np.isnan(truth)).sum(), (~half & ~np.isnan(truth)).sum()) < FEWEST_CELLS:
        return None, {}
    tested = np.empty_like(raw)
    for one in (True, False):
        here = half == one
        tested[:, here] = widened(raw[:, here], fit_intervals(raw[:, ~here], truth[~here]))
    return fit_intervals(raw, truth), coverage(tested, truth)


def _chessboard(scene: Scene, number: int) -> np.ndarray:
    side = max(1, round(INTERVAL_BLOCK_M / scene.cell_m))
    row, col = np.indices(scene.height_m.shape) // side
    return np.asarray((row + col + number) % 2 == 0).ravel()


INTERVAL_BLOCK_M = 64


def _starts(length: int, chip_px: int) -> list[int]:
    return sorted({*range(0, length - chip_px, chip_px), length - chip_px})


def height_loss(net: nn.Module, batch: ChipBatch, step: int, weights: LossWeights, steps: int) -> Tensor:
    """Weighted sum of the losses of a network with `bins` on a batch of chips, at a step of so many."""
    device = next(net.parameters()).device
    image, height, *taps = (part.to(device, non_blocking=True) for part in batch)
    logits = net(image, *taps)
    bins = cast(HeightBins, net.bins)
    heights = bins.height_m(logits)
    height = best_shift(heights, height, weights.shift_cells)
    known = ~torch.isnan(height)
    terms: dict[str, Callable[[], Tensor]] = {
        "histogram": lambda: histogram_loss(logits, height, known, bins),
        **{name: partial(loss, heights, height, known) for name, loss in HEIGHT_LOSSES.items()},
    }
    now = {name: weight_at(getattr(weights, name), step / steps) for name in terms}
    return torch.stack([now[name] * term() for name, term in terms.items() if now[name] > 0]).sum()


HEIGHT_LOSSES = {
    "charbonnier": charbonnier,
    "gradient": gradient_loss,
    "silog": silog,
    "l1": absolute,
    "patch_gradient": patch_gradient,
}


def draw_batch(number: int, split: Split, config: TrainConfig) -> Chip:
    """The batch of a number: image (B, 3, H, W) and height_m (B, H / 2, W / 2)."""
    generator = np.random.default_rng((config.loop.seed, number))
    chosen = split.batches(number) if split.batches else [None] * config.batch
    return _stacked([_augmented(split, which, generator, config) for which in chosen])


def draw_pooled(number: int, split: Split, config: TrainConfig, tokens: KeptTokens) -> ChipBatch:
    """The batch of a number from the pool: images, heights and tokens."""
    assert config.pool
    drawn = pooled(number, config.pool, config.batch, config.loop.seed)
    chips = [_pool_chip(int(which), split, config) for which in drawn]
    taps = [tokens(int(which), image) for which, (image, _) in zip(drawn, chips, strict=True)]
    return *_stacked(chips), torch.stack(taps, dim=1)


def pooled(number: int, pool: int, batch: int, seed: int) -> NDArray[np.int64]:
    """Chips (batch,) of a pool in the batch of a number: every pass takes each chip once, in another order.

    A chip keeps its place in a batch, so that every batch has its short and tall trees.
    """
    done, at = divmod(number, pool // batch)
    firsts = np.tile(np.arange(0, pool, batch), (batch, 1))
    order = np.random.default_rng((seed, done)).permuted(firsts, axis=1)
    return np.asarray(order[:, at] + np.arange(batch))


def _pool_chip(number: int, split: Split, config: TrainConfig) -> Chip:
    batch, place = divmod(number, config.batch)
    which = split.batches(batch)[place] if split.batches else None
    return _augmented(split, which, np.random.default_rng((config.loop.seed, number)), config)


def _stacked(chips: Sequence[Chip]) -> Chip:
    images, heights = zip(*chips, strict=True)
    return torch.stack(images), torch.stack(heights)


def _augmented(split: Split, which: int | None, generator: np.random.Generator, config: TrainConfig) -> Chip:
    chip = _draw(split, which, generator, config)
    if generator.random() < config.mix:
        chip = mix_chips(chip, _draw(split, None, generator, config), generator)
    return chip


def _draw(split: Split, which: int | None, generator: np.random.Generator, config: TrainConfig) -> Chip:
    scene = split.train[generator.choice(len(split.train), p=split.chances) if which is None else which]
    image, height = draw_chip(scene, generator, config.drawn_px, config.zoom)
    if generator.random() < config.shadows:
        image = cast_shadows(image, generator)
    if config.colour > 0:
        image = jitter_colour(jitter_sharpness(image, generator), generator, config.colour)
    return image, height


def make_card(config: TrainConfig, split: Split) -> Card:
    """The card of a model to be trained: what it learns from and how; its scores are still to come."""
    lidar = [scene for scene in split.train if not scene.pseudo]
    pseudo = [scene for scene in split.train if scene.pseudo]
    encoder = encoder_card(config.encoder) if config.encoder else None
    training = {
        "data_sha256": split.sha256,
        "data_licences": list(split.licences),
        "train_scenes": [scene.name for scene in lidar],
        "train_ha": _hectares(lidar),
        "pseudo_scenes": len(pseudo),
        "pseudo_ha": _hectares(pseudo),
        "held_out_scenes": [scene.name for scene in split.test],
        "held_out_ha": _hectares(split.test),
        "steps": read_card(config.start).training.get("steps", 0) if config.start else 0,
        "chips_per_step": config.batch * config.loop.accumulate,
        "seed": config.loop.seed,
        "encoder": encoder.name if encoder else "",
        "encoder_licence": encoder.licence if encoder else "",
        "encoder_frozen": config.encoder_rate == 0,
    }
    own = {name: getattr(config, name) for name in Card.model_fields if name in TrainConfig.model_fields}
    return Card(**own, canopy_version=__version__, training=training)


def _hectares(scenes: Sequence[Scene]) -> float:
    return round(sum(scene.height_m.size * scene.cell_m**2 for scene in scenes) / 1e4, 2)


class _Evaluation:
    """Scores the averaged network on held-out ground, and keeps the last and the best bundle."""

    def __init__(self, run: Path, card: Card, split: Split) -> None:
        self._run, self._card, self._test = run, card, split.test
        self._best_m = self._best_so_far()

    def _best_so_far(self) -> float:
        best = self._run / "best.safetensors"
        return float(read_card(best).metrics["all"]["mae_m"]) if best.is_file() else float("inf")

    def __call__(self, net: nn.Module, step: int) -> dict[str, Any]:
        assert isinstance(net, DPTHeights)
        predictions = [(scene, predict_scene(net, scene, self._card.chip_px)) for scene in self._test]
        metrics = score(predictions) if predictions else {}
        intervals, covered = held_out_intervals(predictions) if predictions else (None, {})
        training = {**self._card.training, "steps": self._card.training["steps"] + step + 1}
        update = {"metrics": metrics, "training": training, "intervals": intervals, "coverage": covered}
        card = self._card.model_copy(update=update)
        weights = {name: _half(tensor) for name, tensor in net.state_dict().items()}
        save_bundle(self._run / "last.safetensors", card, weights)
        mae_m = metrics["all"]["mae_m"] if metrics else -float(step)
        if mae_m < self._best_m:
            self._best_m = mae_m
            save_bundle(self._run / "best.safetensors", card, weights)
        return {"metrics": metrics}


def _half(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array.astype(np.float16) if tensor.is_floating_point() else array


def print_entry(entry: dict[str, Any], steps: int) -> None:
    """Print a line of the log where a person wants one: warnings, scores, and every twentieth step."""
    done = entry["step"] + 1
    if "warning" in entry:
        print(f"step {done}/{steps}  {entry['warning']}", file=sys.stderr, flush=True)
    if "metrics" in entry:
        scores = {group: f"{m['mae_m']:.2f}" for group, m in entry["metrics"].items()}
        print(f"step {done}/{steps}  held-out MAE [m] {scores}", file=sys.stderr, flush=True)
    elif "loss" in entry and done % 20 == 0:
        left = (steps - done) * entry["seconds"] / 60
        print(f"step {done}/{steps}  loss {entry['loss']:.3f}  {left:.0f} min left", file=sys.stderr, flush=True)
