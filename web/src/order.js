// Order of the map's layers: rasters lie below the first mark, features between both, drawings above the second.
export const RASTERS_TOP = "canopy-rasters-top";
export const VECTORS_TOP = "canopy-vectors-top";
