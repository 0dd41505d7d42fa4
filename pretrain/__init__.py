"""Self-supervised stage: unlabelled very-high-resolution imagery to an encoder (DINOv2 recipe).

Empty so far: the first model of `canopy` trains encoder and decoder together, from lidar alone.
This package may import `canopy` and `tiles`; neither ever imports it.
"""
