import io

import numpy as np
import pytest
from PIL import Image
from tile_pyramids import picture

from canopy.imagery.tiled.decoding import Tile, TileContentError, Unknown, declared_blanks, decode

SIZE = (16, 16)
NOISE = np.random.default_rng(0).integers(1, 255, (3, 16, 16))


def decoded(content: bytes, **unknown) -> Tile:
    tile = decode(content, SIZE, Unknown(**unknown))
    assert tile is not None
    return tile


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_pictures_keep_their_values(kind: str) -> None:
    tile = decoded(picture(NOISE, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(tile.values, NOISE)
    assert tile.valid is None


def test_palettes_and_grey_become_three_colours() -> None:
    grey = Image.fromarray(NOISE[0].astype(np.uint8))
    for mode in ("L", "P", "1"):
        buffer = io.BytesIO()
        grey.convert(mode).save(buffer, "PNG")
        tile = decoded(buffer.getvalue())
        assert tile.values.shape == (3, 16, 16)
        np.testing.assert_array_equal(tile.values[0], np.asarray(grey.convert(mode).convert("RGB"))[..., 0])


def test_a_transparent_colour_of_a_palette_is_unknown() -> None:
    buffer = io.BytesIO()
    index = np.arange(256, dtype=np.uint8).reshape(16, 16) % 4
    flat = Image.fromarray(index, mode=None).convert("P")
    flat.save(buffer, "PNG", transparency=0)
    tile = decoded(buffer.getvalue())
    assert tile.valid is not None
    np.testing.assert_array_equal(tile.valid, np.asarray(flat) != 0)


def test_opaque_pictures_with_alpha_are_valid_throughout() -> None:
    assert decoded(picture(np.concatenate([NOISE, np.full((1, 16, 16), 255)]))).valid is None


@pytest.mark.parametrize("mode", ["I;16", "CMYK"])
def test_other_kinds_of_pixels_are_refused(mode: str) -> None:
    buffer = io.BytesIO()
    if mode == "CMYK":
        Image.new("CMYK", SIZE).save(buffer, "JPEG")
    else:
        Image.fromarray((NOISE[0] * 256).astype(np.uint16)).save(buffer, "PNG")
    with pytest.raises(TileContentError, match=r"a picture of mode .*, expected 8-bit RGB or grey"):
        decode(buffer.getvalue(), SIZE, Unknown())


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (8000, 8000)).save(buffer, "PNG")
    with pytest.raises(TileContentError, match="8000 x 8000 px"):
        decode(buffer.getvalue(), SIZE, Unknown())


@pytest.mark.parametrize("cut", [20, 40, 100, 200])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_are_refused(kind: str, cut: int) -> None:
    with pytest.raises(TileContentError):
        decode(picture(NOISE, kind)[:cut], SIZE, Unknown())


def test_blanks_are_declared_by_size_or_hash() -> None:
    assert declared_blanks(["1670", "0123ABCD", "12345678"]) == Unknown((1670,), ("0123abcd", "12345678"))
    assert decode(bytes(1670), SIZE, Unknown(sizes=(1670,))) is None
    with pytest.raises(TileContentError):
        decode(bytes(1671), SIZE, Unknown(sizes=(1670,)))


def test_only_all_three_colours_mean_unknown() -> None:
    values = NOISE.copy()
    values[:, 0, :4] = 7
    values[0, 1, :] = 7
    tile = decoded(picture(values), value=7)
    assert tile.valid is not None
    assert (~tile.valid).sum() == 4
