"""Test of frozen features: canopy height and cover regressed on them, with spatial blocks held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from canopy.dataset.scene import Scene
from canopy.errors import ConfigError, TrainingError
from canopy.models.bundle import Card, find_bundle, read_bundle, save_bundle
from canopy.models.network import PATCH_PX
from pretrain.cells import (
    CHIP_PX,
    Array,
    Features,
    Ground,
    Image,
    cell_means,
    colour_statistics,
    edge_statistics,
    encode,
    measure,
    of_image,
)
from pretrain.config import FeaturesConfig
from pretrain.encoder import Encoder, from_card, load_encoder
from pretrain.matching import save_matches
from pretrain.picture import save_principal_colours
from pretrain.regression import block_folds, site_folds
from pretrain.retrieval import Retrieval, retrieve, under_another_light
from pretrain.scores import GroundResult, compare_features
from pretrain.targets import open_network
from pretrain.teachers import VitFeatures

UNTRAINED = 5
SITE_M = 10_000.0
EARTH_RADIUS_M = 6_371_000.0
PICTURE_PX = 384


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured."""

    name: str
    """Name of the encoder."""
    ground: GroundResult
    """All cells, each predicted without its block and what lies within the buffer around it."""
    sites: dict[str, GroundResult]
    """Cells of each site, predicted without the site; empty with a single site."""
    retrieval: tuple[Retrieval, ...] = ()
    """What each kind of features retrieves."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        sites = {name: result.to_json() for name, result in self.sites.items()}
        retrieval = {result.features: result.to_json() for result in self.retrieval}
        return {"name": self.name, **self.ground.to_json(), "sites": sites, "retrieval": retrieval}


def probe(
    encoder: Path,
    pairs: Path,
    *,
    enlarge: int = 1,
    seed: int = 0,
    untrained: int = UNTRAINED,
    teacher: str | None = None,
    teacher_weights: Path | None = None,
) -> ProbeResult:
    """Compare the features of an encoder with those of the same one untrained, of its teacher, and of statistics.

    Args:
        encoder: Bundle of an encoder or of a height model, or a bundled one's name.
        pairs: Folder of scenes with image and lidar heights.
        enlarge: Factor by which encoders see images enlarged, `architecture.enlarge` of a height model: 1, 2 or 4.
        seed: Seed of the untrained encoders, of the folds and of the bootstrap.
        untrained: Number of untrained encoders: R2 of one depends on its seed.
        teacher: Network that the encoder learnt from, as `features.network` of a recipe names it: of timm, or a bundle.
        teacher_weights: File of its weights; timm's own if None.

    Returns:
        Scores of the features `encoder`, `random`, `teacher` where one is given, `statistics` and `colour`.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Another factor.
        TrainingError: No scenes, or too little ground to hold some of it out.
    """
    if enlarge not in (1, 2, 4):
        raise ConfigError(f"images enlarged {enlarge} times: 1, 2 or 4 expected")
    if teacher_weights and not teacher:
        raise ConfigError(f"--teacher-weights {teacher_weights}: name their network with --teacher")
    card, trained = load_encoder(encoder)
    # needs GDAL, which the rest of the stage does not
    from canopy.dataset.scene_folders import read_scenes

    scenes = read_scenes(pairs)
    grounds = locate_scenes(pairs, scenes)
    kinds: dict[str, list[Features]] = {
        "encoder": [partial(encode, trained, enlarge=enlarge)],
        "random": [partial(encode, net, enlarge=enlarge) for net in _untrained(card, untrained, seed)],
        **({"teacher": [teacher_features(teacher, teacher_weights, enlarge)]} if teacher else {}),
        "statistics": [of_image(edge_statistics)],
        "colour": [of_image(colour_statistics)],
    }
    cells = {name: [measure(scenes, grounds, f) for f in features] for name, features in kinds.items()}
    # cells, blocks and sites are those of the scenes, whatever the features
    first = cells["encoder"][0]
    split = block_folds(first.block, first.position, seed)
    everywhere = np.ones(len(first.block), bool)
    sites = site_folds(first.site, first.block)
    # of several untrained encoders the first stands for all: each needs a second pass over the imagery
    retrieval = [
        retrieve(name, cells[name][0], measure(scenes, grounds, under_another_light(features[0])), split)
        for name, features in kinds.items()
    ]
    return ProbeResult(
        name=card.name,
        ground=compare_features(cells, split, everywhere, seed),
        sites={name: compare_features(cells, [fold], fold.test, seed) for name, fold in sites.items()},
        retrieval=tuple(retrieval),
    )


def teacher_features(network: str, weights: Path | None, enlarge: int) -> Features:
    """Return the features of a trained network at the patches of an encoder of ours.

    Args:
        network: timm name of a vision transformer or a convolutional network, or an encoder's bundle.
        weights: File of its weights; timm's own if None.
        enlarge: Factor by which encoders see images enlarged; a convolutional network sees them as they are.

    Raises:
        ConfigError: timm knows no such network, or has no weights for it.
        ModelError: The weights cannot be read or downloaded.
    """
    config = FeaturesConfig.model_validate({"network": network, "weights": weights, "shrink": enlarge})
    net = open_network(config, PATCH_PX, CHIP_PX // PATCH_PX).eval()

    def features(image: Image, gsd_m: float | None) -> Array:
        # Of the networks, vision transformers alone may know where their patches lie on the ground.
        where = (torch.tensor([gsd_m / enlarge]),) if gsd_m and isinstance(net, VitFeatures) else ()
        return cell_means(lambda chip: net(chip, *where), PATCH_PX, image, enlarge)

    return features


def _untrained(card: Card, count: int, seed: int) -> Iterator[Encoder]:
    """Create untrained encoders of a card, each with its own seed."""
    for number in range(count):
        torch.manual_seed(seed * count + number)
        yield from_card(card).eval()


def locate_scenes(pairs: Path, scenes: Sequence[Scene]) -> list[Ground]:
    """Read where scenes lie, and group those within 10 km of each other to sites.

    Args:
        pairs: Folder of the scenes' folders.
        scenes: The scenes.

    Raises:
        TrainingError: A scene in degrees.
    """
    import rasterio
    from rasterio.warp import transform

    lattices, to_m, lonlat = [], [], []
    for scene in scenes:
        path = pairs / scene.name / "rgb.tif"
        with rasterio.open(path) as opened:
            # from cells of the heights, which are two pixels of the image wide
            placed, crs = opened.transform @ Affine.scale(2), opened.crs
        if crs is None:  # a ground of its own
            lattices.append(scene.name)
            to_m.append(Affine.scale(scene.cell_m))
            lonlat.append((np.nan, np.nan))
            continue
        if not crs.is_projected:
            raise TrainingError(
                f"{path}: a CRS in degrees; a projected one, whose blocks have sides in metres, expected"
            )
        middle = placed @ (scene.height_m.shape[1] / 2, scene.height_m.shape[0] / 2)
        lons, lats = transform(crs, "OGC:CRS84", [middle[0]], [middle[1]])
        lattices.append(crs.to_string())
        to_m.append(Affine.scale(crs.linear_units_factor[1]) @ placed)
        lonlat.append((lons[0], lats[0]))
    sites = group_sites([scene.name for scene in scenes], np.array(lonlat))
    return [Ground(*values) for values in zip(lattices, to_m, sites, strict=True)]


def group_sites(names: Sequence[str], lonlat: Array) -> list[str]:
    """Return the site of every scene: scenes within 10 km of each other, of one name, the first of theirs.

    Args:
        names: Names of the scenes.
        lonlat: (n, 2) longitude and latitude of each; NaN for a scene without a CRS, a site of its own.
    """
    lon, lat = np.radians(lonlat).T
    # haversine formula, on a sphere
    chord = np.sin((lat[:, None] - lat) / 2) ** 2
    chord = chord + np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    distance_m = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(chord.clip(0, 1)))
    _, group = connected_components(csr_array(distance_m <= SITE_M), directed=False)
    # backwards, so that the first name of a group stays
    first = dict(sorted(zip(group.tolist(), names, strict=True), reverse=True))
    return [first[number] for number in group.tolist()]


def picture_scene(encoder: Path, picture: Path, image: Path | None, pairs: Path | None) -> None:
    """Write a PNG of an image's middle and its patch features as colours.

    Args:
        encoder: Encoder, named as for `probe`.
        picture: Path of the PNG.
        image: Any imagery that `canopy predict` reads, shown at its own GSD.
        pairs: Folder of scenes; without an image, the middle of the largest scene is shown.

    Raises:
        ModelError: Not a bundle.
        ConfigError: Neither image nor pairs.
        TrainingError: No scenes.
        ImageryError: No imagery.
    """
    _, trained = load_encoder(encoder)
    if image is not None:
        pixels, gsd_m = _read_middle(image)
    elif pairs is not None:
        from canopy.dataset.scene_folders import read_scenes

        largest = max(read_scenes(pairs), key=lambda scene: scene.height_m.size)
        pixels = largest.image[:, *_middle(largest.image.shape[1:])]
        # Positions on the ground need a scene's place, which one in degrees has none of in metres.
        gsd_m = trained.gsd_m if trained.reference_gsd_m is None else locate_scenes(pairs, [largest])[0].image_gsd_m
    else:
        raise ConfigError("no image for the picture: give --scene IMAGE or --pairs DIR")
    save_principal_colours(picture, trained, pixels, gsd_m)


def picture_matches(encoder: Path, picture: Path, images: tuple[Path, Path]) -> int:
    """Write a PNG of the middles of two images, whose patches are joined where each is the other's nearest.

    Args:
        encoder: Encoder, named as for `probe`.
        picture: Path of the PNG.
        images: Any two images that `canopy predict` reads, each shown at its own GSD.

    Returns:
        Number of patches that are joined.

    Raises:
        ModelError: Not a bundle.
        ImageryError: No imagery.
    """
    _, trained = load_encoder(encoder)
    (first, first_gsd_m), (second, second_gsd_m) = (_read_middle(image) for image in images)
    matches = save_matches(picture, trained, (first, second), (first_gsd_m, second_gsd_m))
    return len(matches.similarity)


def _read_middle(path: Path) -> tuple[NDArray[np.uint8], float]:
    """Read the middle of an image, (3, H, W), at its own GSD, which is returned with it, in metres."""
    import rasterio
    from odc.geo.geobox import GeoBox

    from canopy.imagery import open_imagery

    source = open_imagery(path)
    with rasterio.open(path) as opened:
        grid = GeoBox(opened.shape, opened.transform, opened.crs)[_middle(opened.shape)]
    pixels: NDArray[np.uint8] = np.round(np.nan_to_num(source.read(grid).values) * 255).astype(np.uint8)
    return pixels, source.gsd_m


def record_probe(encoder: Path, result: ProbeResult) -> None:
    """Store a result in the card of the bundle that was probed.

    Args:
        encoder: Path of a bundle, or the name of a bundled one.
        result: Result of `probe`.

    Raises:
        ModelError: Not a bundle.
    """
    path = find_bundle(encoder)
    bundle = read_bundle(path)
    scores = {key: value for key, value in result.to_json().items() if key != "name"}
    metrics = {**bundle.card.metrics, "probe": scores}
    save_bundle(path, bundle.card.model_copy(update={"metrics": metrics}), bundle.weights)


def format_table(result: ProbeResult) -> str:
    """Return a result as Markdown tables: all ground, what is retrieved, and each site left out."""
    lines = ["| features | target | probe | R2 | 95 % interval |", "|---|---|---|---|---|"]
    for c in result.ground.comparisons:
        for name, score in {**c.scores, **{f"encoder - {name}": gain for name, gain in c.gains.items()}}.items():
            interval = "" if score.interval is None else "{:.3f} to {:.3f}".format(*score.interval)
            lines.append(f"| {name} | {c.target} | {c.method} | {_number(score.r2)} | {interval} |")
    if result.retrieval:
        lines += ["", "| features | a cell finds itself | neighbours of its height class |", "|---|---|---|"]
        lines += [f"| {r.features} | {r.instance:.3f} | {r.height_class:.3f} |" for r in result.retrieval]
    if not result.sites:
        return "\n".join(lines)
    features = list(result.ground.comparisons[0].scores)
    lines += [
        "",
        f"| site left out | cells | target | probe | R2 {' | R2 '.join(features)} |",
        "|---" * (4 + len(features)) + "|",
    ]
    for site, ground in result.sites.items():
        for c in ground.comparisons:
            scores = " | ".join(_number(c.scores[name].r2) for name in features)
            lines.append(f"| {site} | {ground.cells} | {c.target} | {c.method} | {scores} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Format R2, or nothing where it is undefined."""
    return "" if value is None else f"{value:.3f}"


def _middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of the middle of an image."""
    rows, cols = (
        slice(first := max(0, (length - PICTURE_PX) // 2), min(length, first + PICTURE_PX)) for length in shape
    )
    return rows, cols
