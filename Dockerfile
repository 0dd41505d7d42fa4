# docker build --target predict -t canopy .
#   docker run --rm -v "$PWD:/work" canopy predict --aoi region.geojson
# docker build --target serve -t canopy-serve .
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
# in without its dependencies, and what `tiles` and the `serve` extra need is named here.
RUN pip install -c /tmp/constraints.txt \
    affine filelock numpy odc-geo pyogrio pyproj rasterio rio-cogeo scipy shapely titiler.core uvicorn
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && rm -r /wheels \
    && python -c "import importlib.util, tiles.cog, tiles.stac; assert not importlib.util.find_spec('torch')"
USER canopy
WORKDIR /work
# There is no server yet: the image is what it will run in, and says so instead of pretending.
CMD ["python", "-c", "raise SystemExit('this image holds the tiles library; it has no server yet')"]
