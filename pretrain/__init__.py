"""Self-supervised stage: unlabelled very-high-resolution imagery to an encoder (DINOv2 recipe).

This package may import `canopy` and `tiles`; neither ever imports it.
"""
