"""Curation: a balanced choice from a large pool by hierarchical k-means (Vo et al. 2024, arXiv 2405.15613)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from canopy.errors import ConfigError
from pretrain.config import CurateConfig
from pretrain.data import Tiles, read_tiles
from pretrain.encoder import Encoder, load_encoder
from pretrain.picture import save_rows
from tiles.files import replacing

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
CHUNK = 65536
"""Vectors that are compared with all centres at once: bounds memory."""
PICTURED = 12
"""Tiles of each coarse cluster in the picture."""


def curate(config: CurateConfig, out: Path) -> Path:
    """Choose tiles and write `index.parquet` for `canopy pretrain`, and `clusters.png`, a row for each coarse cluster.

    Args:
        config: Pool, encoder, tree, number of tiles to choose.
        out: Folder for both, and for `embeddings.npy`.

    Returns:
        Path of the index.

    Raises:
        ConfigError: There are fewer tiles than clusters or tiles to choose.
    """
    tiles, (_, encoder) = read_tiles(config.tiles), load_encoder(config.encoder)
    if max(config.clusters[0], config.choose) > len(tiles):
        raise ConfigError(
            f"{config.clusters[0]} clusters and {config.choose} chosen of {len(tiles)} tiles: fewer of both expected"
        )
    out.mkdir(parents=True, exist_ok=True)
    vectors = embed(tiles, encoder, out / "embeddings.npy", config.batch)
    tree = grow_tree(vectors, config)
    generator = np.random.default_rng(config.seed)
    chosen = balanced_sample(tree, config.choose, generator)
    top = flatten(tree)[-1]
    members = [generator.permutation(np.flatnonzero(top == c))[:PICTURED] for c in np.unique(top)]
    save_rows(out / "clusters.png", [[tiles[int(i)][:3] for i in some] for some in members])
    return _write_index(out / "index.parquet", chosen, flatten(tree), tiles.sha256)


@torch.inference_mode()
def embed(tiles: Tiles, encoder: Encoder, path: Path, batch: int) -> Vectors:
    """Return the unit class tokens (N, D) of all tiles, written to a file batch by batch and mapped from it."""
    with replacing(path) as draft:
        tokens = np.lib.format.open_memmap(draft, "w+", np.float32, (len(tiles), encoder.width))
        for first in range(0, len(tiles), batch):
            numbers = range(first, min(first + batch, len(tiles)))
            images = np.stack([tiles[i] for i in numbers])
            gsd_m = torch.tensor([tiles.gsd_m(i) for i in numbers])
            # whole patches only
            rows, cols = (length // encoder.patch_px * encoder.patch_px for length in images.shape[2:])
            cls = encoder(torch.from_numpy(images[:, :3, :rows, :cols]).float() / 255, gsd_m=gsd_m)[0]
            tokens[first : first + len(images)] = F.normalize(cls, dim=-1).numpy()
        tokens.flush()
    mapped: Vectors = np.load(path, mmap_mode="r")
    return mapped


def grow_tree(vectors: Vectors, config: CurateConfig) -> list[Labels]:
    """Cluster vectors, then the centres of the clusters, and so on.

    Args:
        vectors: (N, D).
        config: Clusters of each level, iterations, resamplings, seed.

    Returns:
        For each level from the finest, the cluster of every member of the level before: (N,), then (clusters[0],), ...
    """
    tree, members = [], vectors
    generator = torch.Generator().manual_seed(config.seed)
    for count in config.clusters:
        centres = kmeans(members, count, config.iterations, generator)
        for _ in range(config.resamplings):
            # equally many members of each cluster, so that dense regions do not take all centres
            nearest = _nearest_members(members, centres, config.resampled)
            centres = kmeans(members[nearest], count, config.iterations, generator)
        label, _ = assign(members, centres)
        tree.append(label)
        members = centres.numpy()
    return tree


def kmeans(vectors: Vectors, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Return centres (count, D) by Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007)."""
    # Lloyd's algorithm stops where no centre moves: assignments then repeat.
    centres = _seeds(vectors, count, generator)
    for _ in range(iterations):
        label, _ = assign(vectors, centres)
        sums, sizes = torch.zeros_like(centres), torch.zeros(count)
        for first, chunk in _chunks(vectors):
            own = torch.from_numpy(label[first : first + len(chunk)])
            sums.index_add_(0, own, chunk)
            sizes += torch.bincount(own, minlength=count)
        # an empty cluster keeps its centre
        moved = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def assign(vectors: Vectors, centres: Tensor) -> tuple[Labels, Vectors]:
    """Return the nearest centre (N,) of every vector (N, D), and its squared distance (N,)."""
    parts = [_squared_distance(chunk, centres).min(dim=1) for _, chunk in _chunks(vectors)]
    return (
        torch.cat([part.indices for part in parts]).numpy(),
        torch.cat([part.values for part in parts]).numpy(),
    )


def flatten(tree: Sequence[Labels]) -> list[Labels]:
    """Return the cluster (N,) of every tile on every level, from the finest."""
    flat = [tree[0]]
    for level in tree[1:]:
        flat.append(level[flat[-1]])
    return flat


def balanced_sample(tree: Sequence[Labels], count: int, generator: np.random.Generator) -> Labels:
    """Draw tiles without repetition, as evenly as the tree's branches allow, level by level from the root.

    Args:
        tree: Levels of `grow_tree`.
        count: Tiles to draw, at most the number of tiles.
        generator: Generator of all randomness.

    Returns:
        (count,) numbers of tiles, sorted.
    """
    flat = flatten(tree)
    # From the root: each branch gets its share, and passes it on to its own branches.
    quota, group = {0: count}, np.zeros(len(flat[0]), np.int64)
    for level in reversed(flat):
        shares: dict[int, int] = {}
        for parent, share in quota.items():
            branches, sizes = np.unique(level[group == parent], return_counts=True)
            shares |= dict(zip(branches.tolist(), fill_evenly(sizes, share).tolist(), strict=True))
        quota, group = shares, level
    chosen = [generator.choice(np.flatnonzero(group == c), n, replace=False) for c, n in quota.items() if n]
    return np.sort(np.concatenate(chosen))


def fill_evenly(sizes: Labels, count: int) -> Labels:
    """Split `count` over branches as evenly as their sizes allow: equal shares, but none above the branch's size."""
    shares = np.zeros_like(sizes)
    left = int(min(count, sizes.sum()))
    while left > 0:
        room = np.flatnonzero(shares < sizes)
        # where less is left than there are branches, the largest branches come first
        room = room[np.argsort(-sizes[room], kind="stable")][:left]
        step = max(1, min(left // len(room), int((sizes - shares)[room].min())))
        shares[room] += step
        left -= step * len(room)
    return shares


def _seeds(vectors: Vectors, count: int, generator: torch.Generator) -> Tensor:
    """Draw k-means++ seeds from a sample that fits in memory."""
    pool = torch.randperm(len(vectors), generator=generator)[: max(CHUNK, 4 * count)].sort().values.numpy()
    sample = torch.from_numpy(np.asarray(vectors[pool], np.float32))
    chosen = [int(torch.randint(len(sample), (1,), generator=generator))]
    distance = torch.full((len(sample),), torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, _squared_distance(sample, sample[chosen[-1:]])[:, 0])
        # chance in proportion to the squared distance; the summand lets identical vectors be drawn
        weight = distance + 1e-12
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
    return sample[chosen].clone()


def _nearest_members(vectors: Vectors, centres: Tensor, count: int) -> Labels:
    """Return the numbers of the `count` members nearest to the centre of each cluster."""
    label, distance = assign(vectors, centres)
    order = np.lexsort((distance, label))
    starts = np.searchsorted(label[order], np.arange(len(centres)))
    position = np.arange(len(order)) - starts[label[order]]
    return np.sort(order[position < count])


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (n, m) of vectors (n, D) and (m, D), by one matrix product."""
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)).clamp(min=0)


def _chunks(vectors: Vectors) -> Iterator[tuple[int, Tensor]]:
    """Yield the first number and the vectors of each chunk."""
    for first in range(0, len(vectors), CHUNK):
        yield first, torch.from_numpy(np.array(vectors[first : first + CHUNK], np.float32))


def _write_index(path: Path, chosen: Labels, flat: Sequence[Labels], sha256: str) -> Path:
    """Write the chosen tiles with their clusters, and the digest of the pool that they are chosen from."""
    columns = {"tile": chosen, **{f"cluster_{n}": level[chosen] for n, level in enumerate(flat)}}
    with replacing(path) as draft:
        pq.write_table(pa.table(columns).replace_schema_metadata({"tiles_sha256": sha256}), draft)
    return path
