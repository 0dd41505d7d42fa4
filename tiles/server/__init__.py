"""Server of height maps: tiles, values under a point, statistics of polygons, and the page that shows them.

A request names a layer by its id; ids stand for the files that were found when the server started, so no request can
name a file or an address. The package needs the extra `serve` and never torch.
"""
