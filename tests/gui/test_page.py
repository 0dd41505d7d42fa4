"""The page of `canopy serve`, in a browser, as people use it: each value on the screen is one of the file."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from map_server import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-gui")

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
REPOSITORY = Path(__file__).resolve().parent.parent.parent
AXE = REPOSITORY / "web" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-default-apps",
]  # fmt: skip
READY = "body[data-idle]:not(.busy):not(.loading)"
WAIT_MS = 120_000
POINTS = ((0.5, 0.5), (0.35, 0.3), (0.62, 0.71))
"""Places on the map as shares of its width and height, from the top left."""


@pytest.fixture(scope="module")
def server(sample_map: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the sample, a second map 2 m lower, and the imagery."""
    from tiles.server.app import create_app
    from tiles.server.catalog import open_catalog

    folder = tmp_path_factory.mktemp("served")
    for path in sample_map.parent.glob("sample.*"):
        if path.suffix in (".tif", ".json"):
            shutil.copy(path, folder / path.name)
    shutil.copy(folder / "sample.tif", folder / "later.tif")
    with rasterio.open(folder / "later.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dst:
        dst.write(dst.read() - 2)
    scene = next(
        path for part in ("canopy/data", "samples") if (path := REPOSITORY / part / "yellowstone.tif").is_file()
    )
    with serving(create_app(open_catalog(folder, scene))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.is_file():
        pytest.skip(f"no {CHROMIUM}: make gui-packages installs it on Debian and Ubuntu")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end no error may be in the console, and no request have gone to another host."""
    contexts: list[Any] = []
    faults: list[str] = []
    hosts: set[str] = set()
    served: set[str] = set()

    def open_one(fragment: str = "", ready: bool = True, address: str = server, **options: Any) -> Any:
        served.add(urlsplit(address).netloc)
        context = browser.new_context(
            **{"viewport": {"width": 1100, "height": 720}, "accept_downloads": True, **options}
        )
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.goto(address + fragment)
        if ready:
            settle(page)
        contexts.append(context)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not [fault for fault in faults if "GPU stall" not in fault]
    assert hosts - {""} == served


def settle(page: Any) -> None:
    """Wait until the map has drawn what it was last asked for."""
    page.wait_for_timeout(600)
    page.locator(READY).wait_for(state="attached")


def picture(page: Any, path: Path | None = None, clip: dict[str, float] | None = None) -> np.ndarray:
    """Take a picture of the page once it stands still; of the whole page where it goes to a file."""
    from PIL import Image

    last = b""
    for _ in range(8):
        data = page.screenshot(clip=clip)
        if data == last:
            break
        last = data
        page.wait_for_timeout(250)
    if path is not None:
        page.screenshot(path=path)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def view(page: Any) -> tuple[float, float, float]:
    """Zoom, latitude and longitude of the centre, as the address says."""
    page.wait_for_timeout(600)
    parts = dict(part.split("=", 1) for part in urlsplit(page.url).fragment.split("&"))
    zoom, lat, lon = (float(text) for text in parts["view"].split("/")[:3])
    return zoom, lat, lon


def lonlat(page: Any, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a pixel of the page, from the view in the address (web mercator, 512 px tiles)."""
    zoom, lat, lon = view(page)
    size = 512 * 2**zoom
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    centre_y = (0.5 - np.arcsinh(np.tan(np.radians(lat))) / (2 * np.pi)) * size
    world_y = centre_y + y - height / 2
    latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * world_y / size))))
    return lon + (x - width / 2) / size * 360, float(latitude)


def cell_of(path: Path, lon: float, lat: float) -> tuple[float, float, float]:
    """Height, and the ends of its interval, of the cell of a map at a place."""
    with rasterio.open(path) as src:
        (x,), (y,) = rasterio.warp.transform("EPSG:4326", src.crs, [lon], [lat])
        row, col = src.index(x, y)
        return tuple(float(value) for value in src.read(window=((row, row + 1), (col, col + 1)))[:, 0, 0])


def free_spot(page: Any, share_x: float, share_y: float) -> tuple[float, float]:
    """A pixel of the map that the panel does not cover."""
    left, width, height = 380, page.viewport_size["width"], page.viewport_size["height"]
    return left + 50 + share_x * (width - left - 150), 60 + share_y * (height - 120)


def draw_polygon(page: Any, corners: list[tuple[float, float]]) -> None:
    page.keyboard.press("p")
    for x, y in [*corners, corners[0]]:
        page.mouse.move(x, y)
        page.mouse.click(x, y)
        page.wait_for_timeout(120)


def test_page_draws_the_sample_and_hover_says_what_the_file_says(
    open_page: Callable[..., Any], sample_map: Path, pictures: Path
) -> None:
    page = open_page("#imagery=0")
    assert page.locator("#title").inner_text() == "later" or page.locator("#title").inner_text() == "sample"
    page.select_option("#layer", "sample")
    settle(page)
    drawn = picture(page, pictures / "page.png", {"x": 380, "y": 0, "width": 660, "height": 720})
    green = (drawn[..., 1] > drawn[..., 0] + 15) & (drawn[..., 1] > drawn[..., 2] + 15)
    assert green.mean() > 0.1
    for shares in POINTS:
        x, y = free_spot(page, *shares)
        page.mouse.move(x, y)
        page.locator("#tooltip:not([hidden])").wait_for()
        page.wait_for_timeout(600)
        shown = page.locator("#tooltip").inner_text().splitlines()
        value = float(page.locator("#tooltip").get_attribute("data-value"))
        lon, lat = lonlat(page, x, y)
        # The address rounds the view, so a neighbour of the cell is as good where the pixel lies on its edge.
        near = [cell_of(sample_map, lon + i * 2e-6, lat + j * 2e-6) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        match = [cell for cell in near if cell[0] == pytest.approx(value, abs=1e-4)]
        assert match, f"{value} at {lon}, {lat}: {near}"
        assert shown[0] == f"{value:.1f} m"
        # On flat ground neighbours share a height, and each has an interval of its own.
        assert {f"{low:.1f} to {high:.1f} m (90 %)" for _, low, high in match} & set(shown)
        assert "2019" in shown[-1]


def test_drawn_polygon_has_the_statistics_of_the_file(
    open_page: Callable[..., Any], sample_map: Path, pictures: Path, tmp_path: Path
) -> None:
    from exactextract import exact_extract
    from exactextract.feature import JSONFeatureSource

    page = open_page("#layer=sample")
    corners = [free_spot(page, *share) for share in ((0.25, 0.3), (0.6, 0.25), (0.7, 0.6), (0.3, 0.65))]
    draw_polygon(page, corners)
    page.locator("#cards dl").wait_for()
    settle(page)
    picture(page, pictures / "polygon.png")
    parts = dict(part.split("=", 1) for part in urlsplit(page.url).fragment.split("&"))
    ring = [tuple(map(float, corner.split(","))) for corner in parts["polygons"].split("_")]
    with rasterio.open(sample_map) as src:
        x, y = rasterio.warp.transform("EPSG:4326", src.crs, *zip(*ring, strict=True))
    polygon = shapely.Polygon(list(zip(x, y, strict=True)))
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(polygon)}
    with rasterio.open(sample_map) as src:
        source = JSONFeatureSource([feature], srs_wkt=src.crs.to_wkt())
    expected = exact_extract(str(sample_map), source, ["mean", "max"])[0]["properties"]
    mean, highest = expected["band_1_mean"], expected["band_1_max"]
    cards = {name: page.locator(f'#cards dd[data-name="{name}"]') for name in ("Mean", "Highest", "Known")}
    values = {name: card.inner_text() for name, card in cards.items()}
    assert float(values["Mean"].split()[0]) == pytest.approx(mean, abs=0.051)
    assert float(values["Highest"].split()[0]) == pytest.approx(highest, abs=0.051)
    assert values["Known"] == "100 %"
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "polygons.csv")
    rows = list(csv.DictReader((tmp_path / "polygons.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 1
    assert float(rows[0]["mean_m"]) == pytest.approx(mean, abs=0.02)
    again = open_page(f"#{urlsplit(page.url).fragment}")
    again.locator("#cards dl").wait_for()
    assert again.locator('#cards dd[data-name="Mean"]').inner_text() == values["Mean"]
    again.get_by_role("button", name="Remove polygon 1").click()
    again.locator("#polygons").wait_for(state="hidden")


def test_ramp_opacity_and_band_move_pixels_without_asking_the_server(open_page: Callable[..., Any]) -> None:
    page = open_page("#layer=sample&imagery=0")
    clip = {"x": 420, "y": 60, "width": 600, "height": 600}
    before = picture(page, clip=clip)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#legend .high").evaluate("(input) => { input.value = 12; input.dispatchEvent(new Event('input')); }")
    settle(page)
    narrow = picture(page, clip=clip)
    assert np.abs(narrow - before).mean() > 8
    page.locator("#opacity").evaluate("(input) => { input.value = 0.2; input.dispatchEvent(new Event('input')); }")
    settle(page)
    assert picture(page, clip=clip).mean() > narrow.mean() + 5
    page.select_option("#ramp", "viridis")
    settle(page)
    assert not [url for url in asked if "/tiles/" in url]
    assert "ramp=viridis" in page.url and "range=0,12" in page.url
    page.get_by_role("radio", name="Interval").check(force=True)
    settle(page)
    assert [url for url in asked if "band=interval_width" in url]
    assert page.locator("#ramp").input_value() == "width"


def test_swipe_shows_imagery_on_its_left_and_moves(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page("#layer=sample")
    plain = picture(page)
    page.click("#swipe-on")
    page.locator("body[data-left-idle]").wait_for(state="attached")
    settle(page)
    page.wait_for_timeout(1500)
    swiped = picture(page, pictures / "swipe.png")
    box = page.locator("#swipe").bounding_box()
    middle = int(box["x"] + box["width"] / 2)
    changed = np.abs(swiped - plain).sum(axis=2)[120:640] > 30
    assert changed[:, 440 : middle - 30].mean() > 0.4
    assert changed[:, middle + 40 : 1000].mean() < 0.05
    page.locator("#swipe").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("#swipe").bounding_box()["x"] > box["x"] + 80
    start = page.locator("#swipe").bounding_box()
    page.mouse.move(start["x"] + 22, 360)
    page.mouse.down()
    page.mouse.move(500, 360, steps=4)
    page.mouse.up()
    assert page.locator("#swipe").bounding_box()["x"] == pytest.approx(478, abs=3)
    page.keyboard.press("Escape")
    page.click("#swipe-on")
    settle(page)
    assert page.locator("#left").is_hidden()


def test_hatching_covers_wide_intervals_alone(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page("#layer=sample&imagery=0")
    clip = {"x": 420, "y": 60, "width": 600, "height": 600}
    plain = picture(page, clip=clip)
    shares = []
    for limit in (1, 15, 40):
        page.evaluate(
            "(limit) => { const input = document.getElementById('hatch'); input.value = limit;"
            " input.dispatchEvent(new Event('input')); }", limit,
        )  # fmt: skip
        settle(page)
        shares.append((np.abs(picture(page, clip=clip) - plain).sum(axis=2) > 60).mean())
        if limit == 15:
            picture(page, pictures / "hatch.png")
    assert shares[0] > shares[1] > 0.02
    assert shares[2] < 0.002


def test_difference_of_two_maps(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page("#layer=sample&imagery=0")
    page.select_option("#minus", "later")
    settle(page)
    picture(page, pictures / "difference.png")
    x, y = free_spot(page, 0.5, 0.5)
    page.mouse.move(x, y)
    page.locator("#tooltip:not([hidden])").wait_for()
    page.wait_for_timeout(600)
    assert page.locator("#tooltip strong").inner_text() == "+2.0 m"
    # Everywhere 2 m: one colour of the ramp from -15 to 15 m.
    spot = picture(page, clip={"x": x + 60, "y": y + 60, "width": 20, "height": 20})
    assert np.ptp(spot.reshape(-1, 3), axis=0).max() <= 8
    assert (page.locator("#ramp").input_value(), page.locator("#bands").is_hidden()) == ("rdbu", True)


def test_canopy_in_3d_tilts_the_view(open_page: Callable[..., Any], pictures: Path) -> None:
    page = open_page("#layer=sample", color_scheme="dark")
    flat = picture(page)
    page.click("#canopy3d")
    page.wait_for_timeout(1500)
    settle(page)
    page.wait_for_timeout(2500)
    settle(page)
    assert np.abs(picture(page, pictures / "3d.png") - flat).mean() > 10
    assert urlsplit(page.url).fragment.split("view=")[1].split("&")[0].split("/")[4] == "62"


def test_keyboard_alone_reads_a_height(open_page: Callable[..., Any], sample_map: Path) -> None:
    page = open_page("#layer=sample&view=17/44.962777/-110.643504/0/0")
    page.locator("#map canvas").first.focus()
    page.keyboard.press("Enter")
    page.locator("#tooltip:not([hidden])").wait_for()
    value = float(page.locator("#tooltip").get_attribute("data-value"))
    assert value == pytest.approx(cell_of(sample_map, -110.643504, 44.962777)[0], abs=1e-4)
    assert page.locator("#live").inner_text().startswith(f"{value:.1f} m, ")
    page.keyboard.press("3")
    assert page.locator("#canopy3d").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_has_room_for_the_map_and_no_serious_fault(
    open_page: Callable[..., Any], pictures: Path, scheme: str
) -> None:
    page = open_page("#layer=sample", viewport={"width": 390, "height": 780}, has_touch=True, color_scheme=scheme)
    picture(page, pictures / f"phone-{scheme}.png")
    panel = page.locator("#panel").bounding_box()
    assert panel["y"] > 350 and panel["width"] == 390
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.touchscreen.tap(195, 200)
    page.locator("#tooltip:not([hidden])").wait_for()
    check_accessibility(page)
    page.click("#handle")
    assert page.locator("#sheet").is_hidden()


def check_accessibility(page: Any) -> None:
    """Fail on serious and critical faults that axe-core finds."""
    if not AXE.is_file():
        pytest.skip(f"no {AXE.relative_to(REPOSITORY)}: make web installs it")
    session = page.context.new_cdp_session(page)  # which may run the checker in spite of the page's own policy
    session.send("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    run = "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
    answer = session.send("Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True})
    violations = json.loads(answer["result"]["value"])
    serious = [
        f"{fault['id']}: {fault['help']}: {[node['target'] for node in fault['nodes']][:4]}"
        for fault in violations
        if fault["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious)


@pytest.mark.parametrize(("scheme", "choices"), [("light", "&swipe=0.42&hatch=15"), ("dark", "")])
def test_desktop_page_has_no_serious_accessibility_fault(
    open_page: Callable[..., Any], scheme: str, choices: str
) -> None:
    page = open_page(f"#layer=sample{choices}", color_scheme=scheme, viewport={"width": 960, "height": 600})
    draw_polygon(page, [free_spot(page, *share) for share in ((0.5, 0.3), (0.7, 0.3), (0.6, 0.6))])
    page.locator("#cards dl").wait_for()
    check_accessibility(page)
    page.click("#help")
    check_accessibility(page)


def test_a_product_is_shown_left_of_the_swipe(browser: Any, sample_map: Path, tmp_path: Path, pictures: Path) -> None:
    from tiles.server.app import create_app
    from tiles.server.catalog import open_catalog

    shutil.copy(sample_map, tmp_path / "sample.tif")
    with rasterio.open(sample_map) as src:
        profile = src.profile | {"count": 1, "driver": "GTiff"}
        gain = np.ones((1, *src.shape), np.float32)
    with rasterio.open(tmp_path / "ten_years.tif", "w", **profile) as dst:
        dst.write(gain)
        dst.update_tags(CANOPY_PRODUCT="change")
    with serving(create_app(open_catalog(tmp_path))) as address:
        context = browser.new_context(viewport={"width": 1100, "height": 720})
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.goto(f"{address}#layer=sample&swipe=0.7")
        settle(page)
        page.locator("body[data-left-idle]").wait_for(state="attached")
        page.wait_for_timeout(1500)
        shown = picture(page, pictures / "product.png")
        chosen = page.locator("#left-layer option:checked").inner_text()
        context.close()
    assert chosen == "Change: ten_years"
    middle = shown[300:420, 480:700]
    assert (np.abs(middle - [33, 102, 172]).max(axis=2) < 12).mean() > 0.9


CENTRE = (-110.643504, 44.962777)
"""Longitude and latitude of the middle of the sample."""
ORANGE = (255, 143, 0)
"""Colour of the outlines of crowns."""


def write_features(folder: Path) -> list[Path]:
    """Write a crown in the middle of the sample and one next to it, and a hundred stands in rows around them."""
    import geopandas

    ((x,), (y,)) = rasterio.warp.transform("EPSG:4326", "EPSG:32612", [CENTRE[0]], [CENTRE[1]])
    crowns = {
        "tree_id": ["a", "b"], "height_m": [15.5, 9.0], "height_p05_m": [12.0, np.nan], "height_p95_m": [18.25, np.nan],
        "crown_area_m2": [314.0, 200.0], "touches_unknown": [False, True],
    }  # fmt: skip
    discs = [shapely.Point(x, y).buffer(10), shapely.Point(x + 30, y).buffer(8)]
    stands = [shapely.box(x + e, y + n, x + e + 10, y + n + 10) for e in range(-50, 50, 10) for n in range(-50, 50, 10)]
    paths = [folder / "crowns.gpkg", folder / "stands.parquet"]
    geopandas.GeoDataFrame(crowns, geometry=discs, crs="EPSG:32612").to_file(paths[0])
    geopandas.GeoDataFrame({"cover_2m": [0.4] * 100}, geometry=stands, crs="EPSG:32612").to_parquet(paths[1])
    return paths


@pytest.fixture(scope="module")
def product_server(sample_map: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the sample, cover, change and features of it."""
    from tiles.server.app import create_app
    from tiles.server.catalog import open_catalog

    folder = tmp_path_factory.mktemp("products")
    with rasterio.open(sample_map) as src:
        profile = src.profile | {"count": 1, "driver": "GTiff"}
        columns = np.arange(src.width) / src.width
        shape = src.shape
    values = {
        "cover": np.full(columns.shape, 0.75),
        "change": np.where(columns < 0.25, -1, np.where(columns < 0.5, 0, 1)),
    }
    for name, row in values.items():
        with rasterio.open(folder / f"{name}.tif", "w", **profile) as dst:
            dst.write(np.broadcast_to(row, (1, *shape)).astype(np.float32))
            dst.update_tags(CANOPY_PRODUCT=name)
            dst.units = ("1" if name == "cover" else "",)
    others = [folder / "cover.tif", folder / "change.tif", *write_features(folder)]
    with serving(create_app(open_catalog(sample_map, others=others))) as address:
        yield address


@pytest.fixture
def open_products(open_page: Callable[..., Any], product_server: str) -> Callable[..., Any]:
    def open_one(fragment: str, **options: Any) -> Any:
        return open_page(fragment, address=product_server, **options)

    return open_one


def share_of(page: Any, colour: tuple[int, int, int]) -> float:
    """Share of the free part of the map in a colour."""
    drawn = picture(page, clip={"x": 380, "y": 80, "width": 660, "height": 600})
    return float((np.abs(drawn - colour).max(axis=2) < 24).mean())


def test_features_are_switched_and_described(open_products: Callable[..., Any], pictures: Path) -> None:
    page = open_products(f"#view=18.5/{CENTRE[1]}/{CENTRE[0]}/0/0")
    boxes = page.locator("#vectors input")
    assert page.locator("#vectors label").all_inner_texts() == ["crowns", "stands"]
    assert [boxes.nth(n).is_checked() for n in range(2)] == [True, True]
    page.get_by_text("100 stands").wait_for()
    page.locator("#map canvas").first.focus()
    page.keyboard.press("Enter")
    page.locator("#feature dl").first.wait_for()
    picture(page, pictures / "features.png")
    card = page.locator("#feature li").first
    assert card.locator("h3").inner_text() == "crowns"
    rows = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
    assert rows == {
        "Tree": "a", "Height": "15.5 m (12.0 to 18.3 m)", "Crown area": "314 m²", "Cut by unknown ground": "no",
    }  # fmt: skip
    assert "crowns: height 15.5 m" in page.locator("#live").inner_text()
    assert "Cover above 2 m\n40 %" in page.locator("#feature").inner_text()
    check_accessibility(page)
    page.keyboard.press("Escape")
    assert page.locator("#feature").is_hidden()
    with_crowns = share_of(page, ORANGE)
    boxes.nth(0).focus()
    page.keyboard.press("Space")
    settle(page)
    assert share_of(page, ORANGE) < 0.2 * with_crowns
    assert "vectors=stands" in page.url
    again = open_products(f"#{urlsplit(page.url).fragment}")
    assert [again.locator("#vectors input").nth(n).is_checked() for n in range(2)] == [False, True]


def test_pointer_and_click_choose_a_feature(open_products: Callable[..., Any]) -> None:
    page = open_products(f"#view=18.5/{CENTRE[1]}/{CENTRE[0]}/0/0&vectors=crowns")
    x, y = page.viewport_size["width"] / 2, page.viewport_size["height"] / 2
    page.mouse.move(x, y)
    page.locator("#tooltip:not([hidden])").wait_for()
    page.wait_for_timeout(600)
    assert page.locator("#tooltip").inner_text().splitlines()[-1] == "crowns: height 15.5 m"
    page.mouse.click(x, y)
    page.locator("#feature dl").wait_for()
    page.mouse.click(x, y + 250)
    page.locator("#feature").wait_for(state="hidden")
    draw_polygon(page, [(x - 40, y - 40), (x + 40, y - 40), (x, y + 40)])
    page.locator("#cards dl").wait_for()


def test_too_many_features_ask_to_zoom_in(
    open_products: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    from tiles.server import feature_queries

    monkeypatch.setattr(feature_queries, "MAX_FEATURES", 30)
    page = open_products(f"#view=17.2/{CENTRE[1]}/{CENTRE[0]}/0/0")
    page.get_by_text("zoom in to see stands", exact=True).wait_for()
    assert page.locator("#vectors .note").first.inner_text() == "2 trees"
    assert page.locator("#live").inner_text() == "Zoom in to see stands"
    picture(page, pictures / "zoom-in.png")
    page.locator("#map canvas").first.focus()
    for _ in range(4):
        page.keyboard.press("+")
        page.wait_for_timeout(800)
    page.get_by_text("100 stands").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_product_as_the_main_layer_has_its_own_legend(
    open_products: Callable[..., Any], pictures: Path, scheme: str
) -> None:
    page = open_products("#layer=change&vectors=", color_scheme=scheme)
    page.get_by_text("Change in this view").wait_for()
    lines = page.locator("#legend .classes li").all_inner_texts()
    shares = {line.split("\n")[0]: int(line.split("\n")[1].split()[0]) for line in lines}
    assert list(shares) == ["Loss", "No detectable change", "Gain"]
    assert (shares["Loss"], shares["Gain"]) == (pytest.approx(25, abs=2), pytest.approx(50, abs=2))
    assert page.locator("#legend input").first.is_hidden() and page.locator("#ramp").is_hidden()
    assert "m" not in page.locator("#legend .ticks").inner_text()
    assert share_of(page, (33, 102, 172)) > 0.1
    x, y = free_spot(page, 0.6, 0.5)
    page.mouse.move(x, y)
    page.locator("#tooltip:not([hidden])").wait_for()
    page.wait_for_timeout(600)
    assert page.locator("#tooltip strong").inner_text() == "Gain"
    picture(page, pictures / f"change-{scheme}.png")
    check_accessibility(page)
    page.select_option("#layer", "cover")
    page.get_by_text("Cover in this view").wait_for()
    assert page.locator("#legend .ticks span").all_inner_texts() == ["0 %", "30 %", "60 %", "100 %"]
    page.mouse.move(x, y + 5)
    page.wait_for_timeout(900)
    assert page.locator("#tooltip strong").inner_text() == "Cover 75 %"
    check_accessibility(page)
    page.select_option("#layer", "sample")
    page.get_by_text("Heights in this view").wait_for()
    assert page.locator("#legend .ticks span").last.inner_text() == "40 m"
    assert page.locator("#legend .classes").is_hidden() and page.locator("#ramp").is_visible()


def test_empty_and_broken_servers_are_said_in_words(browser: Any, server: str, pictures: Path) -> None:
    context = browser.new_context(viewport={"width": 900, "height": 600})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.route("**/layers", lambda route: route.fulfill(json={"layers": []}))
    page.goto(server)
    page.get_by_text("There is no height map here yet").wait_for()
    picture(page, pictures / "empty.png")
    page.unroute("**/layers")
    page.route("**/layers", lambda route: route.fulfill(status=500, json={"detail": "the disk is on fire"}))
    page.goto(f"{server}?again")
    page.get_by_text("the disk is on fire").wait_for()
    page.unroute("**/layers")
    page.get_by_role("button", name="Try again").click()
    page.locator(READY).wait_for(state="attached")
    context.close()


def test_hostile_links_open_the_page_all_the_same(open_page: Callable[..., Any]) -> None:
    hostile = (
        "#layer=../../etc/passwd&band=none&minus=%3Cscript%3E&ramp=__proto__&range=5,1&opacity=NaN&swipe=x"
        "&view=a/b/c&polygons=1,2_3~x&hatch=&__proto__=1"
    )
    page = open_page(hostile)
    assert page.locator("#title").inner_text() in ("sample", "later")
    assert page.locator("#state").is_hidden()
