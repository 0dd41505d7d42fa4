"""Self-distillation with no labels: student, teacher and losses of DINOv2 (Oquab et al. 2024, sections 4 and 5)."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from canopy.training.loop import blend, frozen_copy
from pretrain.augment import crop, crop_gsd_m
from pretrain.batch import TileBatch
from pretrain.config import HeadConfig, HeadShape, PretrainConfig
from pretrain.depth import set_drop_path
from pretrain.encoder import Encoder, fit_grid, start_from
from pretrain.heads import Head
from pretrain.losses import (
    Centre,
    dino_loss,
    gram_loss,
    ibot_loss,
    koleo_group,
    koleo_loss,
    shrink_grid,
    sinkhorn_knopp,
)
from pretrain.monitors import CollapseSigns, collapse_signs
from pretrain.scale import scale_encoder, spread
from pretrain.schedules import Schedules
from pretrain.targets import PatchTargets, target_levels


class Tokens(NamedTuple):
    """Output of a network on a batch's crops: C global crops, S crops in all, M masked patches.

    A tuple rather than a dataclass: torch's data-parallel wrappers look for tensors in tuples and dictionaries alone,
    and give a head that no term uses its zero gradient.
    """

    cls_logits: Tensor
    """(S, B, K) logits of the class tokens, global crops first."""
    patch_logits: Tensor
    """(M, K) logits of the masked patches."""
    cls: Tensor
    """(C, B, D) class tokens of the global crops."""
    patches: Tensor
    """(C B, P, D) patches of the global crops."""
    predictions: dict[str, Tensor]
    """(C B, P, values) predicted from the patches' tokens, by target; (C B, 1 + P, 3 D) queries, keys and values."""


class Views(NamedTuple):
    """What student and teacher see of a batch of B tiles."""

    global_crops: Tensor
    """(C, B, bands, H, W) float32 in [0, 1], first RGB."""
    local_crops: Tensor
    """(L, B, bands, h, w) float32 in [0, 1], first RGB."""
    masks: Tensor
    """(C, B, rows, cols) bool, True where a patch of a global crop is masked."""
    masked: Tensor
    """(M,) numbers of the masked patches among all."""
    weights: Tensor
    """(M,) one over the masked patches of each one's crop."""
    gsds_m: tuple[Tensor, Tensor]
    """(C, B) GSD of the global crops and (L, B) of the local ones, metres."""


class Distiller(nn.Module):
    """An encoder with its projection heads.

    Args:
        encoder: Encoder that turns crops into tokens.
        heads: Shape of the heads.
        ibot: Whether patches need logits at all.
        targets: Number of values predicted for each patch, by target.
        relations: Whether queries, keys and values of the last block are part of the output.
    """

    def __init__(
        self, encoder: Encoder, heads: HeadConfig, *, ibot: bool, targets: Mapping[str, int], relations: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.cls_head = encoder, _head(encoder.width, heads)
        self.own_patch_head = _head(encoder.width, heads.patch_shape) if heads.untied and ibot else None
        # the name is stored in checkpoints
        self.relations = relations
        if relations:
            encoder.watch_relations(-1)
        self.tellers = nn.ModuleDict({name: nn.Linear(encoder.width, count) for name, count in targets.items()})

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,
        *,
        blind: bool,
        gsds_m: tuple[Tensor, Tensor] | None = None,
        masked: Tensor | None = None,
    ) -> Tokens:
        """Return tokens and logits of crops.

        Args:
            global_crops: (C, B, bands, H, W) float32 in [0, 1], first RGB.
            local_crops: (L, B, bands, h, w) float32 in [0, 1], or None for none.
            masks: (C, B, rows, cols) bool.
            blind: Whether masked patches are hidden from the encoder.
            gsds_m: (C, B) GSD of the global crops and (L, B) of the local ones, metres; the encoder's own if None.
            masked: (M,) numbers of the masked patches among all, in the order of the masks; a GPU that has to find them
                would make the CPU wait for it.
        """
        crops, batch = global_crops.shape[:2]
        by_image = masks.flatten(0, 1)
        global_gsd_m, local_gsd_m = (None, None) if gsds_m is None else (gsd_m.flatten() for gsd_m in gsds_m)
        cls, patches = self.encoder(global_crops.flatten(0, 1), by_image if blind else None, global_gsd_m)
        relations = {"relations": self.encoder.take_relations()} if self.relations else {}
        all_cls = cls.view(crops, batch, -1)
        if local_crops is not None and len(local_crops):
            local_cls = self.encoder(local_crops.flatten(0, 1), gsd_m=local_gsd_m)[0]
            if self.relations:
                self.encoder.take_relations()  # those of local crops are not used
            all_cls = torch.cat([all_cls, local_cls.view(len(local_crops), batch, -1)])
        patch_head = self.own_patch_head or self.cls_head
        # logits of masked patches alone: at 65,536 prototypes the others would not fit
        numbers = masked_numbers(masks) if masked is None else masked
        patch_logits = patch_head(patches.flatten(0, 1).index_select(0, numbers))
        predictions = {name: layer(patches) for name, layer in self.tellers.items()}
        return Tokens(self.cls_head(all_cls), patch_logits, all_cls[:crops], patches, predictions | relations)


class SelfDistillation:
    """Student and teacher as the training loop steps them.

    Args:
        config: The recipe.
        device: Device of all networks.
        teacher: Network that gives the targets, frozen; the student's moving average if None.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, teacher: Distiller | None = None) -> None:
        self.config = config
        images = config.batch * config.loop.accumulate
        self.schedules = Schedules(config.schedule_steps, images, config.schedule, config.target)
        # Order: weights, then what changes the modules, then copies, then sharding, then the optimizer on the shards.
        self.student = build_distiller(config).to(device)
        if config.start is not None:
            start_from(self.student.encoder, config.start)
        set_drop_path(
            self.student.encoder.vit, config.drop_path, config.batch,
            uniform=config.drop_path_uniform, subset=config.drop_path_subset,
        )  # fmt: skip
        scale_encoder(self.student.encoder, config.scale, device)
        self._koleo_group = koleo_group(config.koleo.group)
        self.average = frozen_copy(self.student)
        self.teacher = self.average if teacher is None else frozen_copy(teacher).to(device)
        self.anchor = frozen_copy(self.student.encoder) if config.terms.gram else None
        self.centres = nn.ModuleList(
            Centre(head.prototypes, config.target.centre_momentum) for head in (config.heads, config.heads.patch_shape)
        ).to(device)
        self.targets = PatchTargets(config, self.student.encoder).to(device)
        # without a teacher of its own, average and teacher are one network, to be spread once
        frozen = dict.fromkeys(net for net in (self.average, self.teacher, self.anchor) if net is not None)
        self.net = spread([self.student, *frozen], config.scale, idle=not config.terms.dino)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            list(parameter_groups(self.student, config)), lr=1.0, betas=config.schedule.betas
        )
        # of the last batch, logged by `update`
        self._terms: dict[str, Tensor] = {}
        self._signs: CollapseSigns | None = None

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint contains, by its name there; the Gram teacher only where there is one."""
        parts = {
            "net": self.student,
            "average": self.average,
            "centres": self.centres,
            "optimizer": self.optimizer,
            "standardisers": self.targets.standardisers,
        }
        return parts if self.anchor is None else {**parts, "anchor": self.anchor}

    def schedule(self, step: int) -> dict[str, float]:
        """Set rate and decay of every group; the rate of prototypes is 0 at first."""
        rate, decay = self.schedules.learning_rate(step), self.schedules.weight_decay(step)
        frozen = self.schedules.freezes_prototypes(step)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if frozen and group["prototypes"] else rate * group["scale"]
            group["weight_decay"] = decay if group["decays"] else 0.0
        return {"lr": rate, "weight_decay": decay}

    def loss(self, batch: TileBatch, step: int) -> Tensor:
        """Return the weighted sum of the terms on a batch of tiles.

        The teacher goes first, without gradients, so that its activations are freed before the student's are kept.
        """
        views = self._views(batch)
        global_crops, local_crops, masks, masked, _, gsds_m = views
        teacher = self._teach(views) if self.config.terms.dino or self.config.terms.ibot else None
        student = self.net(global_crops, local_crops, masks, blind=self.config.masks.hide, gsds_m=gsds_m, masked=masked)
        # losses in float32: exp and log of bf16 lose the small probabilities
        with torch.autocast(global_crops.device.type, enabled=False):
            terms = self._loss_terms(student, teacher, views, step)
            if self.anchor is not None and step >= self._gram_start():
                terms["gram"] = gram_loss(student.patches, self._anchor_patches(self.anchor, batch, views))
            terms |= self.targets.losses(student.predictions, global_crops.flatten(0, 1), gsds_m[0].flatten())
            if teacher is not None and step % self.config.monitor_every == 0:
                self._signs = collapse_signs(teacher.cls_logits, teacher.cls, self.schedules.temperature(step))
        total = global_crops.new_zeros(())
        for name, value in terms.items():
            total = total + getattr(self.config.terms, name) * value
        self._terms = {name: value.detach() for name, value in terms.items()}
        return total

    def update(self, step: int) -> dict[str, Any]:
        """Move the average, renew the anchor; return the terms, and the signs of collapse where they were measured."""
        momentum = self.schedules.momentum(step)
        blend(self.average, self.student, momentum)
        # The anchor is copied from the average that this step leaves.
        if self.anchor is not None and self._renews_anchor(step + 1):
            self.anchor.load_state_dict(self.average.encoder.state_dict())
        entry: dict[str, Any] = {"momentum": momentum, **{name: float(value) for name, value in self._terms.items()}}
        signs, self._signs = self._signs, None
        if signs is None:
            return entry
        # an untrained teacher distinguishes no images: no warning before the end of the warm-up
        warmed = step >= self.config.schedule.warmup * self.config.schedule_steps
        warning = signs.warning() if warmed else None
        return entry | asdict(signs) | ({} if warning is None else {"warning": warning})

    @torch.no_grad()
    def _teach(self, views: Views) -> Tokens:
        """Return what the teacher makes of the whole global crops, resized where its patches differ in size."""
        own_px, teacher_px = self.student.encoder.patch_px, self.teacher.encoder.patch_px
        resized = fit_grid(views.global_crops.flatten(0, 1), own_px, teacher_px)
        resized = resized.view(*views.global_crops.shape[:2], *resized.shape[1:])
        gsd_m = views.gsds_m[0] * own_px / teacher_px
        tokens: Tokens = self.teacher(
            resized, None, views.masks, blind=False, gsds_m=(gsd_m, gsd_m[:0]), masked=views.masked
        )
        return tokens

    def _views(self, batch: TileBatch) -> Views:
        """Cut global crops, local crops and masks of a batch, on the student's device."""
        device = next(self.student.parameters()).device
        tiles, gsd_m = batch.tiles.to(device, non_blocking=True), batch.gsd_m.to(device, non_blocking=True)
        kinds = (batch.global_draws, batch.global_px), (batch.local_draws, batch.local_px)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            global_crops, local_crops = (crop(tiles, gsd_m, *kind, self.config.gsd_m) for kind in kinds)
            global_gsd_m, local_gsd_m = (crop_gsd_m(tiles, gsd_m, *kind, self.config.gsd_m) for kind in kinds)
        # Where patches are masked is found on the CPU, which has the masks: nothing waits for the device.
        masked, weights = masked_numbers(batch.masks), patch_weights(batch.masks.flatten(0, 1))
        masks, masked, weights = (part.to(device, non_blocking=True) for part in (batch.masks, masked, weights))
        return Views(global_crops, local_crops, masks, masked, weights, (global_gsd_m, local_gsd_m))

    def _loss_terms(
        self,
        student: Tokens,
        teacher: Tokens | None,
        views: Views,
        step: int,
    ) -> dict[str, Tensor]:
        """Return the terms that compare student and teacher, by name, without their weights."""
        weights, target = self.config.terms, self.config.target
        terms = {}
        if weights.dino and teacher is not None:
            cls_target = self._target(teacher.cls_logits.flatten(0, 1), step, 0).view_as(teacher.cls_logits)
            terms["dino"] = dino_loss(student.cls_logits, cls_target, target.student_temperature)
        if weights.ibot and teacher is not None:
            patch_target = self._target(teacher.patch_logits, step, 1)
            crops = len(views.masks.flatten(0, 1))
            terms["ibot"] = ibot_loss(
                student.patch_logits, patch_target, views.weights, crops, target.student_temperature
            )
        if weights.koleo:
            # crop by crop, for two crops of one tile may lie close together; a sum over crops, as in DINOv2's code
            terms["koleo"] = torch.stack([koleo_loss(cls, self._koleo_group) for cls in student.cls]).sum()
        return terms

    def _anchor_patches(self, anchor: Encoder, batch: TileBatch, views: Views) -> Tensor:
        """Return the Gram teacher's features (C B, P, D) of the student's patches (DINOv3, sections 4.2 and 4.3).

        At a resolution above 1 its crops are cut from the tiles again, with as many more pixels of the same ground: as
        sharp as the imagery is, not as the student's crops are. Their blur, in pixels, is that much finer.
        """
        factor = self.config.gram.resolution
        crops, gsd_m = views.global_crops, views.gsds_m[0].flatten() / factor
        if factor > 1:
            tiles, tile_gsd_m = batch.tiles.to(crops.device), batch.gsd_m.to(crops.device)
            px, nominal_gsd_m = factor * batch.global_px, self.config.gsd_m / factor
            crops = crop(tiles, tile_gsd_m, batch.global_draws, px, nominal_gsd_m)
        patches: Tensor = anchor(crops.flatten(0, 1), gsd_m=gsd_m)[1]
        return patches if factor == 1 else shrink_grid(patches, factor)

    @torch.no_grad()
    def _target(self, logits: Tensor, step: int, centre: int) -> Tensor:
        """Turn (n, K) logits of the teacher into (n, K) probabilities; class tokens and patches have a centre each."""
        temperature = self.schedules.temperature(step)
        if self.config.target.kind == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, self.config.target.iterations)
        if self.config.target.kind == "centre":
            centred: Tensor = self.centres[centre](logits, temperature)
            return centred
        return (logits.float() / temperature).softmax(dim=-1)

    def _gram_start(self) -> int:
        """Return the first step with a Gram teacher."""
        return math.ceil(self.config.gram.start * self.config.schedule_steps)

    def _renews_anchor(self, step: int) -> bool:
        """Return whether the anchor is replaced before a step."""
        since = step - self._gram_start()
        return since >= 0 and since % self.config.gram.refresh_steps == 0


def _head(width: int, shape: HeadShape) -> Head:
    """Create a projection head of a shape."""
    return Head(width, shape.hidden, shape.bottleneck, shape.prototypes, shape.layers, gain=shape.gain)


def build_distiller(config: PretrainConfig) -> Distiller:
    """Create the untrained student; its weights come from the global generator, seeded here."""
    torch.manual_seed(config.loop.seed)
    px = config.high_resolution.global_px if config.high_resolution else config.global_crops.px
    arch = config.architecture
    encoder = Encoder(
        arch.encoder, dict(arch.encoder_args), px, config.mean, config.std, config.drop_path,
        stem=arch.stem, reference_gsd_m=arch.reference_gsd_m, gsd_m=config.gsd_m,
    )  # fmt: skip
    targets = {name: sum(levels) for name, levels in target_levels(config, encoder.patch_px).items()}
    return Distiller(
        encoder, config.heads, ibot=config.terms.ibot > 0, targets=targets, relations=config.terms.relations > 0
    )


def masked_numbers(masks: Tensor) -> Tensor:
    """Return the numbers (M,) of masked patches among all, of masks of any shape, in their order."""
    return masks.flatten().nonzero()[:, 0]


def patch_weights(masks: Tensor) -> Tensor:
    """Return for each of M masked patches one over the masked patches of its image; masks are (n, rows, cols)."""
    flat = masks.flatten(1)
    return (1 / flat.sum(dim=1).clamp(min=1)).repeat_interleave(flat.sum(dim=1))


def parameter_groups(student: Distiller, config: PretrainConfig) -> Iterator[dict[str, Any]]:
    """Yield groups of parameters with one rate factor each: by depth, patch embedding, decay, prototypes.

    The factor of a block is `layer_decay` to the power of the layers above it (Clark et al. 2020, ELECTRA, appendix A).
    """
    blocks = len(student.encoder.vit.blocks)
    # Vectors, positions and tokens do not decay: they have no scale of their own to bound.
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        scale = config.schedule.layer_decay ** (blocks + 1 - _layer(name, blocks))
        if "patch_embed" in name:
            scale *= config.schedule.patch_embed
        decays = parameter.ndim >= 2 and not re.search(r"pos_embed|cls_token|reg_token", name)
        groups.setdefault((scale, decays, "prototypes" in name), []).append(parameter)
    for (scale, decays, prototypes), members in groups.items():
        yield {"params": members, "scale": scale, "decays": decays, "prototypes": prototypes}


def _layer(name: str, blocks: int) -> int:
    """Return the layer of a parameter: 0 for embeddings, n + 1 for block n, the last for norm and heads."""
    if block := re.search(r"encoder\.vit\.blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if re.search(r"patch_embed|pos_embed|_token|reg_token|norm_pre", name) else blocks + 1
