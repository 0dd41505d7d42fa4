# docker build --target predict -t canopy .
#   docker run --rm -v "$PWD:/work" canopy predict --aoi region.geojson
# docker build --target serve -t canopy-serve .
#   docker run --rm -v "$PWD:/work:ro" -p 127.0.0.1:8000:8000 canopy-serve
#
# Weights: only those that ship in the package. No other model is fetched while building.

FROM python:3.11-slim AS wheel
WORKDIR /src
RUN pip install --no-cache-dir build hatchling
COPY pyproject.toml LICENSE README.md* ./
COPY canopy canopy
COPY configs configs
COPY pretrain pretrain
COPY recipes recipes
COPY tiles tiles
RUN python -m build --wheel --no-isolation --outdir /wheels


FROM python:3.11-slim AS base
# rasterio's wheels take libexpat from the system.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 canopy \
    && mkdir /work && chown canopy /work
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt /tmp/constraints.txt


FROM base AS predict
COPY --from=wheel /wheels /wheels
RUN pip install -c /tmp/constraints.txt /wheels/*.whl && rm -r /wheels
USER canopy
WORKDIR /work
ENTRYPOINT ["canopy"]
CMD ["--help"]


FROM base AS serve
# One distribution holds all three packages and depends on torch, which `tiles` never imports. So the wheel goes
# in without its dependencies, and what `tiles` and its server need is named here.
RUN pip install -c /tmp/constraints.txt \
    affine anyio attrs fastapi filelock morecantile numpy odc-geo pillow pyogrio pyproj rasterio \
    rio-cogeo rio-tiler scipy shapely starlette titiler.core typer uvicorn
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && rm -r /wheels \
    && python -c "import importlib.util, tiles.server.app; assert not importlib.util.find_spec('torch')"
USER canopy
WORKDIR /work
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# The command `canopy` needs torch; the server is started by its module. Inside a container it must listen on every
# address: publish the port on 127.0.0.1 of the host, or put a proxy with a login before it.
ENTRYPOINT ["python", "-m", "tiles.server", "--host", "0.0.0.0"]
CMD ["/work"]
