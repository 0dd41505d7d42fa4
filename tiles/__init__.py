"""Tiler and serving: grids, blending, Cloud-Optimized GeoTIFFs, STAC. Never imports torch."""
