#!/bin/sh
# What calibration with spaceborne lidar corrects, on ground where the truth is known: distort a canopy height model on
# made-up hills, fly over it, calibrate, validate. Usage: recipes/gedi_experiment.sh CHM OUT
set -e
chm=$1
out=$2
mkdir -p "$out"
python "$(dirname "$0")/distort_map.py" "$chm" --out "$out/map.tif" --dem "$out/dem.tif"
canopy gedi simulate "$chm" --dem "$out/dem.tif" --out "$out/shots.h5" --passes 8 --across-m 100 --overwrite
canopy gedi read "$out/shots.h5" --out "$out/shots.parquet" --set power_beams=false --overwrite
canopy gedi validate --pred "$out/map.tif" --shots "$out/shots.parquet" --shift-search --report "$out/before"
canopy calibrate --pred "$out/map.tif" --shots "$out/shots.parquet" --dem "$out/dem.tif" --out "$out/calibration.json" --overwrite
canopy calibrate --pred "$out/map.tif" --apply "$out/calibration.json" --out "$out/calibrated.tif" --overwrite
canopy validate "$out/calibrated.tif"
canopy gedi validate --pred "$out/calibrated.tif" --shots "$out/shots.parquet" --report "$out/after"
canopy evaluate --pred "$out/map.tif" --pred "$out/calibrated.tif" --truth "$chm" --report "$out/truth"
