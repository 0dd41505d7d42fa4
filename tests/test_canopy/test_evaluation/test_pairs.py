"""Maps of many sites are scored site by site and together."""

import json
from pathlib import Path

import numpy as np
import pytest
from height_maps import height_raster, soft_crowns

from canopy.errors import EvaluationError
from canopy.evaluation import height_metrics
from canopy.evaluation.comparison import TruthOptions
from canopy.evaluation.pairs import POOLED, evaluate_pairs

Pairs = list[tuple[Path, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return maps and truths of three sites of different sizes, far apart."""
    folder = tmp_path_factory.mktemp("pairs")
    files = []
    for number, name in enumerate(("bart", "mlbs", "sjer")):
        pred, truth = soft_crowns((120 + 30 * number, 120), number)
        origin = (500_000.0 + 9000 * number, 5_000_010.0)
        names = [folder / name / f"{name}_{kind}.tif" for kind in ("map", "chm")]
        files.append(
            (height_raster(names[0], pred + number, origin=origin), height_raster(names[1], truth, origin=origin))
        )
    return files


def test_sites_are_scored_together_and_alone(pairs: Pairs) -> None:
    evaluation = evaluate_pairs([pred for pred, _ in pairs], [truth for _, truth in pairs])
    arrays = [soft_crowns((120 + 30 * number, 120), number) for number in range(3)]
    pooled = height_metrics([(pred + number, truth) for number, (pred, truth) in enumerate(arrays)], 1.0)
    assert evaluation.pooled is not None
    for name in ("mae_m", "rmse_m", "bias_m", "r2", "n_px", "skill"):
        assert getattr(evaluation.pooled.scores, name) == pytest.approx(getattr(pooled, name), rel=1e-6)
    assert list(evaluation.pooled.sites) == ["bart_chm", "mlbs_chm", "sjer_chm"]
    biases = [site.scores.bias_m for site in evaluation.pooled.sites.values()]
    assert np.diff(biases) == pytest.approx([1, 1], abs=0.4)
    assert list(evaluation.results) == [POOLED]
    assert evaluation.to_json()["sites"].keys() == evaluation.pooled.sites.keys()


def test_one_truth_is_a_comparison_as_before(pairs: Pairs) -> None:
    (pred, truth), _, _ = pairs
    evaluation = evaluate_pairs([pred], [truth])
    assert evaluation.pooled is None
    assert list(evaluation.results) == [str(pred)]
    assert "sites" not in evaluation.to_json()


def test_masks_are_none_one_or_one_a_truth(pairs: Pairs, tmp_path: Path) -> None:
    preds, truths = [pred for pred, _ in pairs], [truth for _, truth in pairs]
    blank = height_raster(tmp_path / "blank.tif", np.zeros((9, 9)), dtype="uint8", nodata=None)
    full = height_raster(
        tmp_path / "full.tif", np.ones((60, 120)), dtype="uint8", nodata=None, origin=(500_000.0, 5_000_010.0)
    )
    whole, same, fewer = (evaluate_pairs(preds, truths, masks).pooled for masks in ([], [blank], [full, blank, blank]))
    assert whole and same and fewer
    assert same.scores == whole.scores
    assert fewer.sites["bart_chm"].scores.n_px < 0.6 * whole.sites["bart_chm"].scores.n_px
    assert fewer.sites["sjer_chm"].scores == whole.sites["sjer_chm"].scores
    with pytest.raises(EvaluationError, match="2 masks for 3 truths"):
        evaluate_pairs(preds, truths, [blank, blank])


def test_truths_of_one_name_are_named_by_their_folders(pairs: Pairs, tmp_path: Path) -> None:
    truths = []
    for number in range(2):
        path = tmp_path / f"site{number}" / "chm.tif"
        path.parent.mkdir()
        path.write_bytes(pairs[0][1].read_bytes())
        truths.append(path)
    evaluation = evaluate_pairs([pairs[0][0]] * 2, truths)
    assert list(evaluation.comparisons) == ["site0/chm", "site1/chm"]
    with pytest.raises(EvaluationError, match="named twice"):
        evaluate_pairs([pairs[0][0]] * 2, [truths[0]] * 2)


def test_faults_are_one_line(pairs: Pairs, tmp_path: Path) -> None:
    preds, truths = [pred for pred, _ in pairs], [truth for _, truth in pairs]
    with pytest.raises(EvaluationError, match="2 predictions for 3 truths"):
        evaluate_pairs(preds[:2], truths)
    with pytest.raises(EvaluationError, match="each is a site"):
        evaluate_pairs(preds, truths, options=TruthOptions(sites=tmp_path / "s.gpkg", by="site"))


def test_the_command_takes_pairs_and_writes_a_page_a_site(canopy, pairs: Pairs, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [part for pred, truth in pairs[:2] for part in ("--pred", pred, "--truth", truth)]
    code, out, err = canopy("evaluate", *files, "--json", "--report", tmp_path / "report")
    assert code == 0, err
    document = json.loads(out)
    assert list(document["sites"]) == ["bart_chm", "mlbs_chm"]
    pages = [tmp_path / "report" / name / "evaluation.html" for name in document["sites"]]
    assert err.splitlines()[-2:] == [str(page) for page in pages]
    assert all(page.is_file() for page in pages)
