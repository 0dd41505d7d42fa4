"""The decoder stage: a model learnt from images and lidar heights. Runs on stores without GDAL."""
