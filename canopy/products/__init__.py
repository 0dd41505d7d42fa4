"""Products of height maps: stands, trees, gaps, cover, biomass and change, each with its uncertainty.

A product reads its maps through `reading`, works window by window in a folder that a killed run leaves behind (`work`),
and gets its name, its provenance and its STAC asset in one place (`writing`).
"""
