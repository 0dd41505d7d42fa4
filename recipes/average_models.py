"""One model of several that were trained from one start: the mean of their weights, scored on held-out ground.

    python recipes/average_models.py configs/train-weak.yaml RUN/last.safetensors OTHER/last.safetensors --out MEAN

The configuration is that of the trainings: it names the data, on whose held-out side the mean is scored and its
intervals are fitted, and the model. `--set` changes it, as in `canopy train`.
"""

import argparse
from pathlib import Path

from canopy.config import load_config
from canopy.training.averaging import average_models
from canopy.training.config import TrainConfig


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config, TrainConfig, tuple(arguments.set))
    print(average_models(config, arguments.bundles, arguments.out, resume=True))


if __name__ == "__main__":
    main()
