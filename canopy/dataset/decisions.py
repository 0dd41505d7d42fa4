"""What needs all candidates at once: near-duplicates, splits, doubtful labels, rows in the store and weights."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import shapely

from canopy.dataset.config import DatasetConfig
from canopy.dataset.curation import near_duplicates
from canopy.dataset.records import DROP, KEEP, PARTS, ChipRecord
from canopy.dataset.splits import ChipGround, assign_splits
from canopy.errors import DatasetError


def decide(records: Sequence[ChipRecord], config: DatasetConfig) -> list[ChipRecord]:
    """Decide on all candidates.

    Args:
        records: Candidates in the order of the store: labelled ones first.
        config: Curation and splits.

    Returns:
        The records in the same order, with decision, reason, split, block, weight and row.

    Raises:
        DatasetError: No candidate is kept.
    """
    # A duplicate must not push other chips out of a split, so duplicates go before the splits are cut. Doubtful labels
    # go after: only training chips are judged, and only the splits say which those are.
    records = _drop_duplicates(records, config.curation.duplicate_bits)
    records = _split(records, config)
    records = _drop_doubtful(records, config.curation.max_disagreement_m)
    return _number(records)


def _drop_duplicates(records: Sequence[ChipRecord], bits: int) -> list[ChipRecord]:
    """Drop unlabelled chips that repeat an earlier chip, labelled or not."""
    candidates = [number for number, record in enumerate(records) if not record.reason]
    hashes = [records[number].hash or "" for number in candidates]
    repeats = near_duplicates(hashes, [records[number].date for number in candidates], bits)
    result = list(records)
    for repeated, original in repeats.items():
        number, other = candidates[repeated], records[candidates[original]]
        if records[number].part == PARTS[1]:
            result[number] = replace(records[number], reason=f"near-duplicate of {other.chip}")
    return result


def _split(records: Sequence[ChipRecord], config: DatasetConfig) -> list[ChipRecord]:
    candidates = [record for record in records if not record.reason]
    # A dropped candidate claims no ground: it neither straddles blocks nor drives others back.
    assignments = iter(assign_splits([_ground(record) for record in candidates], config.splits))
    result = []
    for record in records:
        if record.reason:
            result.append(record)
            continue
        assigned = next(assignments)
        result.append(replace(record, split=assigned.split, block=assigned.block, reason=assigned.reason))
    return result


def _ground(record: ChipRecord) -> ChipGround:
    side_m = max(record.real_rows or 0, record.real_cols or 0) * (record.gsd_m or 0.0)
    outline = shapely.from_wkb(record.geometry or b"")
    return ChipGround(record.site, outline, side_m, labelled=record.part == PARTS[0], weak=record.part == PARTS[2])


def _drop_doubtful(records: Sequence[ChipRecord], most_m: float | None) -> list[ChipRecord]:
    """Drop training chips whose label a weak model contradicts; a test must not be made easier by a model."""

    def judged(record: ChipRecord) -> ChipRecord:
        error_m = record.disagreement_m
        if record.split != "train" or most_m is None or error_m is None or error_m <= most_m:
            return record
        return replace(record, split=None, reason=f"label and weak model {error_m:.1f} m apart, {most_m:g} allowed")

    return [judged(record) for record in records]


def _number(records: Sequence[ChipRecord]) -> list[ChipRecord]:
    """Number the kept chips of each part, and weigh them so that a block counts once however many chips it has."""
    chips_of_block = Counter((record.part, record.block) for record in records if not record.reason)
    counts: Counter[str] = Counter()
    result = []
    for record in records:
        if record.reason:
            result.append(replace(record, decision=DROP, row=-1, weight=0.0))
            continue
        weight = 1 / chips_of_block[record.part, record.block]
        result.append(replace(record, decision=KEEP, row=counts[record.part], weight=weight))
        counts[record.part] += 1
    if not counts:
        raise DatasetError(f"none of {len(records)} candidates is kept; the first because: {records[0].reason}")
    return result
