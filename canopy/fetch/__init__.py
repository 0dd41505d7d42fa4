"""Data of others for an area: airborne lidar with imagery, spaceborne shots, published height maps."""
