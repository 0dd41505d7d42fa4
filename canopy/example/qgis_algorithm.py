"""The Processing algorithm for QGIS, as a file in a folder of the user's."""

from pathlib import Path

from tiles.files import make_folder, replacing, require_new

ALGORITHM = Path(__file__).resolve().parent.parent / "data" / "qgis" / "canopy_height.py"
"""The algorithm as it ships: one file, which imports nothing of Canopy."""


def write_qgis_algorithm(folder: Path, *, overwrite: bool = False) -> Path:
    """Write the Processing algorithm that maps canopy height from within QGIS.

    Args:
        folder: Folder to write to, such as ``processing/scripts`` of a QGIS profile; created where it does not exist.
        overwrite: Whether an older file of the same name is replaced.

    Returns:
        The file.

    Raises:
        OutputError: The file exists, or cannot be written.
    """
    path = folder / ALGORITHM.name
    require_new(path, overwrite, [ALGORITHM])
    make_folder(folder)
    with replacing(path) as draft:
        draft.write_bytes(ALGORITHM.read_bytes())
    return path
