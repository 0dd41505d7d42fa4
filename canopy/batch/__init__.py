"""Batches: a plan of tiles that any number of machines compute, each tile committed once, and nothing lost.

Every fact lies in the store, a folder or an S3 prefix:

    plan.json, plan/            what is computed, written once
    leases/                     who computes which tile now
    data/                       heights, each object under a name of its attempt
    items/                      commit markers: the STAC item of each finished tile, written last and once
    failures/                   attempts that failed, and why
    index/                      markers of finished prefixes, in one table each
    collection.json, mosaic-*/  the result, when every tile is there
"""
