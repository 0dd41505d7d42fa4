"""Maps and truths of many sites, scored site by site and together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from canopy.errors import EvaluationError
from canopy.evaluation.comparison import Comparison, Result, Sums, TruthOptions, evaluate
from canopy.progress import Report, ignore

POOLED = "all sites"


@dataclass(frozen=True)
class Evaluation:
    """Maps scored against one truth, or against the truth of each site."""

    comparisons: dict[str, Comparison]
    """Comparison with each truth, by the name of its site."""
    pooled: Result | None
    """Result of all sites together, with that of each; None with one truth."""

    @property
    def results(self) -> dict[str, Result]:
        """Results to print: of all sites together, or of each prediction by its path."""
        if self.pooled is not None:
            return {POOLED: self.pooled}
        return next(iter(self.comparisons.values())).results

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON."""
        return self.pooled.to_json() if self.pooled is not None else next(iter(self.comparisons.values())).to_json()


def evaluate_pairs(
    predictions: Sequence[Path],
    truths: Sequence[Path],
    masks: Sequence[Path] = (),
    *,
    options: TruthOptions | None = None,
    draw: bool = False,
    report: Report = ignore,
) -> Evaluation:
    """Score predictions against one truth, or each against the truth of its own site.

    Args:
        predictions: Rasters of heights; with several truths one a truth, in their order.
        truths: Rasters of heights, north-up.
        masks: None, one for all truths, or one a truth: rasters that exclude cells.
        options: How the truths are read and split.
        draw: Whether to gather what the report's figures need.
        report: Called after each window of each pair.

    Raises:
        EvaluationError: The numbers do not match, or a pair cannot be scored.
        RasterError: A file is damaged or no raster of heights.
    """
    if len(masks) not in (0, 1, len(truths)):
        raise EvaluationError(f"{len(masks)} masks for {len(truths)} truths: none, one or one a truth expected")
    by_truth: list[Path | None] = [*masks] if len(masks) == len(truths) else [*masks, None][:1] * len(truths)
    if len(truths) == 1:
        comparison = evaluate(predictions, truths[0], mask=by_truth[0], options=options, draw=draw, report=report)
        return Evaluation({truths[0].stem: comparison}, None)
    if len(predictions) != len(truths):
        raise EvaluationError(
            f"{len(predictions)} predictions for {len(truths)} truths: one a truth expected, in the same order"
        )
    if options is not None and options.sites is not None:
        raise EvaluationError("--sites splits one truth: with several, each is a site")
    comparisons = {
        name: evaluate([prediction], truth, mask=mask, options=options, draw=draw, report=report)
        for name, prediction, truth, mask in zip(_names(truths), predictions, truths, by_truth, strict=True)
    }
    # Sums are pooled, not scores: a site counts by its cells, and R² and skill are those of all ground together.
    whole = reduce(Sums.__add__, (comparison.sums[0] for comparison in comparisons.values()))
    sites = {name: next(iter(comparison.results.values())) for name, comparison in comparisons.items()}
    return Evaluation(comparisons, whole.result(sites))


def _names(truths: Sequence[Path]) -> list[str]:
    """Return a name a truth: its stem, or its folder and stem, or its path, whichever no other truth shares."""
    for names in ([path.stem for path in truths], [f"{path.parent.name}/{path.stem}" for path in truths]):
        if max(Counter(names).values()) == 1:
            return names
    paths = [str(path) for path in truths]
    if len(set(paths)) < len(paths):
        raise EvaluationError("a truth is named twice: each once expected")
    return paths
