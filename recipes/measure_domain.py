"""A bundle with the domain of its training images in its card, for one that was trained before cards held it.

    python recipes/measure_domain.py configs/train-small.yaml BUNDLE --set pairs.root=PAIRS --out BUNDLE

`canopy train` writes it into its bundles itself. canopy-small's was measured on its pairs alone, without the rendered
woodland and the pseudo-labelled imagery that it also learnt from.
"""

import argparse
from pathlib import Path

from canopy.bundle import read_bundle, save_bundle
from canopy.config import TrainConfig, load_config
from canopy.training import measure_domain, read_split


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = load_config(given.config, TrainConfig, tuple(given.set))
    card, weights, _ = read_bundle(given.bundle)
    domain = measure_domain(config, read_split(config))
    save_bundle(given.out, card.model_copy(update={"domain": domain}), weights)
    print(f"limit {domain.limit:.2f}")


if __name__ == "__main__":
    main()
