"""Cost of self-distillation at any size: operations, memory and bytes a tile, counted on the graph, not run.

Run: python benchmarks/pretraining_scale.py

Networks live on the meta device, so a ViT-H is counted on a laptop. Operations are matrix products, forward and
backward. Activations are the tensors that autograd saves in bf16, each storage counted once. The plan at the end
assumes that a share of the GPU's peak is reached (`--mfu`): it is a plan, not a measurement.
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import HeadConfig
from pretrain.encoder import Encoder
from pretrain.heads import Head

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-Ti/16": ("vit_tiny_patch16_224", {}),
    "ViT-S/16": ("vit_small_patch16_224", {}),
    "ViT-B/16": ("vit_base_patch16_224", {}),
    "ViT-L/16": ("vit_large_patch16_224", {}),
    "ViT-H/16": ("vit_huge_patch14_224", {"patch_size": 16, "num_heads": 20, "mlp_layer": "swiglu"}),
}
GLOBAL, LOCAL = (2, 224), (8, 96)
MASKED = 0.5 * 0.3
TILE_BYTES = 3 * 256 * 256
STATE_BYTES = 4 * (1 + 1 + 2)


def main() -> None:
    """Count all sizes, and print the table and the plans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mfu", type=float, default=0.4)
    parser.add_argument(
        "--peak", type=float, default=989e12, help="Peak of the GPU in bf16, operations per second (default: H100)."
    )
    options = parser.parse_args()
    print("| encoder | parameters | TFLOP/tile | activations MB/tile | with checkpointing | state GB | checkpoint GB |")
    print("|" + "---|" * 7)
    counted = {name: count(*size) for name, size in SIZES.items()}
    for name, c in counted.items():
        state = c["parameters"] * STATE_BYTES / 1e9
        print(
            f"| {name} | {c['parameters'] / 1e6:.0f} M | {c['flop'] / 1e12:.3f} | {c['activations'] / 1e6:.0f} "
            f"| {c['recomputed'] / 1e6:.0f} | {state:.1f} | {state:.1f} |"
        )
    for name, tiles, epochs in (("ViT-H/16", 18e6, 30), ("ViT-L/16", 500e6, 4)):
        rate = options.mfu * options.peak / counted[name]["flop"]
        hours = tiles * epochs / rate / 3600
        speed = f"{rate:.0f} tiles/s and reads {rate * TILE_BYTES / 1e6:.0f} MB/s"
        assumed = f"{options.mfu:.0%} of {options.peak / 1e12:.0f} TFLOP/s"
        print(f"\n{name}, {tiles / 1e6:.0f} M tiles x {epochs}: a GPU takes {speed}; {hours:.0f} hours at {assumed}")


def count(name: str, args: dict[str, Any]) -> dict[str, float]:
    """Count parameters of encoder and heads, operations and bytes of activations of a tile."""
    heads = HeadConfig()
    with torch.device("meta"):
        encoder = Encoder(name, {"init_values": 1e-5, "reg_tokens": 4, **args}, 224, (0.5,) * 3, (0.2,) * 3).bfloat16()
        head = Head(encoder.width, heads.hidden, heads.bottleneck, heads.prototypes, heads.layers).bfloat16()
    for block in encoder.vit.blocks:
        block.attn.fused_attn = False
    global_crops = crops(GLOBAL)
    tokens = {"student": GLOBAL[0] + LOCAL[0], "teacher": GLOBAL[0]}
    masked = MASKED * GLOBAL[0] * (GLOBAL[1] / encoder.patch_px) ** 2
    forward, trained = (
        operations(encoder, global_crops, backward=False),
        operations(encoder, global_crops, backward=True),
    )
    local = operations(encoder, crops(LOCAL), backward=True)
    per_token = (
        operations(head, torch.empty(1000, encoder.width, device="meta", dtype=torch.bfloat16), backward=True) / 1000
    )
    own_heads = per_token * (tokens["student"] + masked + (tokens["teacher"] + masked) / 3)
    both = sum(p.numel() for p in encoder.parameters()) + 2 * sum(p.numel() for p in head.parameters())
    stored = [activations(encoder, checkpointing=on) for on in (False, True)]
    return {
        "parameters": both,
        "flop": forward + trained + local + own_heads,
        "activations": stored[0],
        "recomputed": stored[1],
    }


def crops(kind: tuple[int, int]) -> Tensor:
    """Return a tile's crops, without pixels."""
    return torch.empty(kind[0], 3, kind[1], kind[1], device="meta", dtype=torch.bfloat16)


def operations(net: torch.nn.Module, batch: Tensor, *, backward: bool) -> float:
    """Count the operations of a call: a product and its sum are two."""
    with FlopCounterMode(display=False) as counter:
        output = net(batch)
        if backward:
            total = sum(part.sum() for part in output) if isinstance(output, tuple) else output.sum()
            total.backward()
    return float(counter.get_total_flops())


def activations(encoder: Encoder, *, checkpointing: bool) -> float:
    """Count the bytes that autograd stores for a tile's crops until the backward pass."""
    encoder.vit.set_grad_checkpointing(checkpointing)
    bytes_by_storage: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            bytes_by_storage[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        for kind in (GLOBAL, LOCAL):
            encoder(crops(kind))
    return float(sum(bytes_by_storage.values()))


if __name__ == "__main__":
    main()
