"""GEDI, the spaceborne lidar: shots read and filtered, their footprints on a map, validation, simulation."""
