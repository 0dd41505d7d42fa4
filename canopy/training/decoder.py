"""Decoder stage: heights learnt from images and lidar, written as a bundle."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from canopy.dataset.scene import Scene
from canopy.errors import TrainingError
from canopy.models.bundle import Card, Domain, read_bundle, read_card, save_bundle
from canopy.models.domain import fit_domain
from canopy.models.dpt import ENCODER, DPTHeights, load_stages
from canopy.models.encoders import encoder_card, read_encoder, with_positions
from canopy.models.heads import HeightBins
from canopy.models.model import load_weights
from canopy.progress import Report, ignore
from canopy.training.config import LossWeights, TrainConfig, weight_at
from canopy.training.held_out import held_out_intervals, predict_scene, score
from canopy.training.loop import fit
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
from canopy.training.sampling import ChipBatch, Split, draw_batch, draw_pooled, read_store
from canopy.training.token_cache import KeptTokens
from canopy.version import __version__


def train(config: TrainConfig, run: Path, *, resume: bool = False, report: Report = ignore) -> Path:
    """Train a height model and write `last.safetensors` and `best.safetensors` (lowest held-out MAE).

    Args:
        config: What to train, on what.
        run: Folder of the run: bundles, `log.jsonl`, `config.yaml`, `checkpoints/`.
        resume: Go on from the last checkpoint, if any.
        report: Called every twentieth step.

    Returns:
        Path of the best bundle.

    Raises:
        TrainingError: Data or run are unusable.
    """
    with hold_run(run, config, resume=resume):
        split = read_split(config)
        card = make_card(config, split)
        net = start_net(config, card, split)
        card = card.model_copy(update={"domain": measure_domain(config, split)})
        net = net.to("cuda" if torch.cuda.is_available() else "cpu")
        batches: Callable[[int], ChipBatch] = partial(draw_batch, split=split, config=config)
        if config.pool:
            tokens = KeptTokens(net, run / "tokens", config.pool, config.drawn_px)
            batches = partial(draw_pooled, split=split, config=config, tokens=tokens)
        claim_run(run, config)
        fit(
            net,
            partial(height_loss, weights=config.loss, steps=config.loop.steps),
            batches,
            config.loop,
            run,
            resume=resume,
            evaluate=_Evaluation(run, card, split),
            report=partial(report_entry, steps=config.loop.steps, report=report),
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
