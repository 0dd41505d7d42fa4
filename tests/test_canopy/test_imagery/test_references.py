import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from imagery_reading import grid, read, refusal, refused
from rasterio.shutil import copy
from rasters import UTM, make_raster
from servers.web import WebServer

from canopy.imagery import open_imagery

CRS_WKT = rasterio.CRS.from_string(UTM).to_wkt()


def make_vrt(path: Path, member: Path, *, relative: bool) -> Path:
    path.parent.mkdir(exist_ok=True)
    copy(member, path, driver="VRT")
    name = os.path.relpath(member, path.parent) if relative else str(member)
    text = path.read_text()
    start, end = text.index("<SourceFilename"), text.index("</SourceFilename>")
    old = text[start:end]
    path.write_text(text.replace(old, f'<SourceFilename relativeToVRT="{int(relative)}">{name}'))
    return path


def vrt_of(path: Path, source: str, *, extra: str = "", band: str = "") -> Path:
    """Write a VRT whose bands read from what `source` says."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{number}" {band}><ColorInterp>{colour}</ColorInterp>'
        f"{source.format(number=number)}</VRTRasterBand>"
        for number, colour in enumerate(("Red", "Green", "Blue"), 1)
    )
    placed = f"<SRS>{CRS_WKT}</SRS><GeoTransform>500000,.5,0,5000000,0,-.5</GeoTransform>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<VRTDataset rasterXSize="128" rasterYSize="96">{placed}{extra}{bands}</VRTDataset>')
    return path


def simple(name: object, *, tag: str = "SourceFilename", attributes: str = "") -> str:
    return f"<SimpleSource><{tag} {attributes}>{name}</{tag}><SourceBand>{{number}}</SourceBand></SimpleSource>"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, list[str]]]:
    """Address of a server, and the paths that were asked of it."""
    requests: list[str] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("relative", [True, False])
def test_a_vrt_and_its_missing_member(tmp_path: Path, relative: bool) -> None:
    member = make_raster(tmp_path / "m" / "a.tif")
    vrt = make_vrt(tmp_path / "a.vrt", member, relative=relative)
    np.testing.assert_array_equal(read(vrt), read(member))
    source = open_imagery(vrt)
    member.unlink()
    refused(vrt, r"member .*a\.tif is missing")
    with refusal("replaced or removed"):
        source.read(grid())


def test_members_outside_need_a_word(tmp_path: Path) -> None:
    member = make_raster(tmp_path / "private" / "a.tif")
    vrt = make_vrt(tmp_path / "given" / "a.vrt", member, relative=False)
    refused(vrt, r"lies outside its folder.*--allow-outside")
    refused(make_vrt(tmp_path / "given" / "b.vrt", member, relative=True), "lies outside its folder")
    np.testing.assert_array_equal(read(vrt, allow_outside=True), read(member))
    for root in (tmp_path / "private", f"{tmp_path}/private/*.tif", member):
        assert len(open_imagery([vrt, root]).uris) == 2


def test_links_do_not_lead_outside(tmp_path: Path) -> None:
    member = make_raster(tmp_path / "private" / "a.tif")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "link.tif").symlink_to(member)
    refused(make_vrt(tmp_path / "given" / "a.vrt", tmp_path / "given" / "link.tif", relative=True), "outside")


@pytest.mark.parametrize(
    "source",
    [
        simple("{outside}"),
        simple("{outside}", tag="sourcefilename"),
        simple("{outside}", tag="SOURCEFILENAME", attributes='xmlns="any"'),
        simple("{outside}").replace("SimpleSource", "ComplexSource"),
        simple("../private/a.tif", attributes='relativeToVRT="1"'),
        '<SimpleSource SourceFilename="{outside}"><SourceBand>{{number}}</SourceBand></SimpleSource>',
        "<MaskBand><VRTRasterBand dataType='Byte'>" + simple("{outside}") + "</VRTRasterBand></MaskBand>",
        "<Overview><SourceFilename>{outside}</SourceFilename><SourceBand>1</SourceBand></Overview>",
    ],
)
def test_every_way_to_name_a_member_is_seen(tmp_path: Path, source: str) -> None:
    outside = make_raster(tmp_path / "private" / "a.tif")
    vrt = vrt_of(
        tmp_path / "given" / "a.vrt", source.replace("{outside}", str(outside)).replace("{{", "{").replace("}}", "}")
    )
    refused(vrt, "lies outside its folder")


def test_raw_bytes_of_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(range(256)) * 200)
    raw = "<SourceFilename>{name}</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>1</PixelOffset>"
    raw += "<LineOffset>128</LineOffset>"
    kind = 'subClass="VRTRawRasterBand"'
    outside = raw.replace("{name}", str(tmp_path / "secret.bin"))
    refused(vrt_of(tmp_path / "given" / "a.vrt", outside, band=kind), "lies outside its folder")


def test_a_vrt_under_another_suffix_is_a_vrt(tmp_path: Path) -> None:
    outside = make_raster(tmp_path / "private" / "a.tif")
    for name in ("a.tif", "a.png"):
        refused(vrt_of(tmp_path / "given" / name, simple(outside)), "lies outside its folder")


def test_what_the_vrt_warps_is_seen(tmp_path: Path) -> None:
    outside = make_raster(tmp_path / "private" / "a.tif")
    extra = f"<GDALWarpOptions><SourceDataset relativeToVRT='0'>{outside}</SourceDataset></GDALWarpOptions>"
    refused(vrt_of(tmp_path / "given" / "a.vrt", "", extra=extra), "lies outside its folder")
    location = f'<Metadata domain="GEOLOCATION"><MDI key="X_DATASET">{outside}</MDI></Metadata>'
    refused(vrt_of(tmp_path / "given" / "b.vrt", "", extra=location), "lies outside its folder")


def test_descriptions_may_name_files_and_addresses(tmp_path: Path) -> None:
    member = make_raster(tmp_path / "m.tif")
    note = '<Metadata><MDI key="SOURCE_FILE">/etc/x.tif</MDI><MDI key="LICENCE">https://example.org</MDI></Metadata>'
    vrt = vrt_of(tmp_path / "a.vrt", simple("m.tif", attributes='relativeToVRT="1"'), extra=note)
    np.testing.assert_array_equal(read(vrt), read(member))


def test_nested_vrts_are_followed(tmp_path: Path) -> None:
    outside = make_raster(tmp_path / "private" / "a.tif")
    inner = make_vrt(tmp_path / "given" / "inner.vrt", outside, relative=False)
    refused(make_vrt(tmp_path / "given" / "a.vrt", inner, relative=True), r"inner\.vrt: its member .* lies outside")


def test_a_vrt_of_itself_ends(tmp_path: Path) -> None:
    vrt = vrt_of(tmp_path / "a.vrt", simple("a.vrt", attributes='relativeToVRT="1"'))
    refused(vrt, "cannot be read")


SERVICE = """<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/x.png</ServerUrl></Service><DataWindow>
<UpperLeftX>500000</UpperLeftX><UpperLeftY>5000000</UpperLeftY><LowerRightX>500064</LowerRightX>
<LowerRightY>4999952</LowerRightY><SizeX>128</SizeX><SizeY>96</SizeY></DataWindow><Projection>EPSG:32631</Projection>
<BandsCount>3</BandsCount></GDAL_WMS>"""


@pytest.mark.parametrize("allow_outside", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "{url}/a.tif", "/vsicurl/{url}/a.tif", "/vsicurl_streaming/{url}/a.tif", "/vsizip//vsicurl/{url}/a.zip/a.tif",
        "/vsis3/bucket/a.tif", "WMS:{url}", "vrt:///vsicurl/{url}/a.tif", "service.tif", "service.vrt",
        "&lt;VRTDataset/&gt;", "GTIFF_DIR:1:a.tif",
    ],
)  # fmt: skip
def test_addresses_inside_files_are_never_followed(
    tmp_path: Path, address: tuple[str, list[str]], name: str, allow_outside: bool
) -> None:
    url, requests = address
    (tmp_path / "service.tif").write_text(SERVICE.format(url=url))
    copy(make_raster(tmp_path / "plain.tif"), tmp_path / "service.vrt", driver="VRT")
    text = (tmp_path / "service.vrt").read_text().replace(">plain.tif<", f">{url}/b.tif<")
    (tmp_path / "service.vrt").write_text(text)
    requests.clear()
    vrt = vrt_of(tmp_path / "a.vrt", simple(name.format(url=url), attributes='relativeToVRT="1"'))
    refused(vrt, r"is an address|no plain file|can name addresses", allow_outside=allow_outside)
    assert requests == []


def test_a_description_of_a_service_is_no_raster(tmp_path: Path, address: tuple[str, list[str]]) -> None:
    url, requests = address
    requests.clear()
    for name, text in (("a.tif", SERVICE.format(url=url)), ("b.tif", '{"type": "FeatureCollection", "features": []}')):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, "a text that describes data elsewhere")
    assert requests == []


@pytest.mark.parametrize("where", ["in the file", "in .aux.xml"])
def test_overviews_are_not_fetched(tmp_path: Path, address: tuple[str, list[str]], where: str) -> None:
    url, requests = address
    requests.clear()
    path = make_raster(tmp_path / "a.tif", shape=(2000, 2000), pattern="constant")
    if where == "in the file":
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/o.ovr")
    else:
        item = f'<MDI key="OVERVIEW_FILE">/vsicurl/{url}/o.ovr</MDI>'
        text = f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>'
        (tmp_path / "a.tif.aux.xml").write_text(text)
    refused(path, "is an address")
    assert requests == []


def test_a_member_names_no_overviews_elsewhere(tmp_path: Path, address: tuple[str, list[str]]) -> None:
    url, requests = address
    values = np.zeros((3, 1200, 1200))
    values[:, 50:, 50:] = 9
    member = make_raster(tmp_path / "m.tif", values=values)
    with rasterio.open(member, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{url}/o.ovr")
    copy(member, tmp_path / "a.vrt", driver="VRT")
    requests.clear()
    text = (tmp_path / "a.vrt").read_text()
    assert "OVERVIEW_FILE" not in text
    read(tmp_path / "a.vrt")
    assert requests == []


def test_a_vrt_at_an_address_is_not_followed(tmp_path: Path) -> None:
    with WebServer() as server:
        server.files("/", tmp_path)
        vrt_of(tmp_path / "a.vrt", simple(f"{server.url}/m.tif"))
        refused(f"{server.url}/a.vrt", "a text of HTML or XML, expected GeoTIFF")
        assert server.count("/m.tif") == 0


def test_program_code_is_not_run(tmp_path: Path) -> None:
    make_raster(tmp_path / "m.tif")
    code = "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>import os</PixelFunctionCode>"
    source = code + simple("m.tif", attributes='relativeToVRT="1"')
    refused(vrt_of(tmp_path / "a.vrt", source, band='subClass="VRTDerivedRasterBand"'), "contains program code")


@pytest.mark.parametrize("text", ["", "<VRTDataset", "<VRTDataset></x>", "not XML at all"])
def test_a_broken_vrt_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.vrt").write_text(text)
    refused(tmp_path / "a.vrt", "not a readable VRT|0 bytes")


def test_an_entity_bomb_is_one_line(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    vrt = "<VRTDataset><SourceFilename>&a11;</SourceFilename></VRTDataset>"
    (tmp_path / "a.vrt").write_text(f'<!DOCTYPE x [<!ENTITY a0 "{"x" * 100}">{entities}]>{vrt}')
    refused(tmp_path / "a.vrt", "not a readable VRT")
