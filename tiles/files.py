"""Files that appear whole or not at all, and cached files that are trusted by their checksum alone."""

import contextlib
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tiles.errors import OutputError, one_line


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; `path` keeps its old bytes until all of the new ones are on the disk.

    Args:
        path: Final name; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    with removed_on_error(draft):
        yield draft
        sync(draft)
        rename(draft, path)


def relative_name(path: Path, folder: Path) -> str:
    """Return a path as files of a folder name it, with slashes; it begins with a dot.

    Raises:
        ValueError: The two lie on different drives.
    """
    relative = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return relative if relative.startswith("../") else f"./{relative}"


def draft_of(path: Path) -> Path:
    """Return a temporary name in the folder of `path`."""
    # Unique, because a scheduler may run one tile twice at the same time.
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def sweep_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder; the caller makes sure that no other process writes."""
    for draft in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            draft.unlink()


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no handle for a folder, and renames durably without one
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(draft: Path, path: Path) -> None:
    """Give a synced draft its name, for good."""
    draft.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def removed_on_error(*paths: Path) -> Iterator[None]:
    """Remove what was begun when the block raises, interruption included."""
    try:
        yield
    except BaseException:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


@contextlib.contextmanager
def reported(
    path: Path, *errors: type[Exception], remedy: str = "make room or name another folder, then run again"
) -> Iterator[None]:
    """Turn a failure to write into one line: what cannot be written, why, how much space is left, and what to do.

    Args:
        path: File or folder that is written.
        errors: Errors, other than OSError, of a library that writes.
        remedy: What the user can do.

    Raises:
        OutputError: The block failed to write.
    """
    failures: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except failures as error:
        raise OutputError(f"cannot write {path}: {_reason(error)}{_free_space(path)}; {remedy}") from error


def _reason(error: BaseException) -> str:
    """Return what the system said, which a library's own error may hide."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return one_line(error, 200)


def _free_space(path: Path) -> str:
    """Return the space that is left on the disk of a path, in words; empty where the system does not say."""
    folder = next((parent for parent in (path, *path.parents) if parent.is_dir()), None)
    if folder is None:
        return ""
    try:
        return f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB free in {folder})"
    except OSError:
        return ""


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or one_line(error)}") from error


def require_new(path: Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse to replace an existing file without permission, an input with or without it, and a name beyond reach.

    Hours of work would be lost where only its end finds that nothing can be written.

    Raises:
        OutputError: `path` exists, is an input, or lies in no folder that can be written to.
    """
    if any(path.resolve() == Path(source).resolve() for source in inputs):
        raise OutputError(f"{path} is read, and would be replaced: name another output")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: name another output or pass --overwrite")
    folder = next((above for above in path.absolute().parents if above.exists()), None)
    if folder is None or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise OutputError(f"{path} cannot be written: {folder or path.anchor} is no folder that may be written to")


def expand_patterns(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Replace patterns by the files that match, for shells that do not.

    Args:
        paths: Files and patterns. A path that exists is no pattern, whatever its name.

    Returns:
        Files, each once, and the patterns that no file matches.
    """
    files: list[Path] = []
    unmatched = []
    for path in paths:
        if path.exists() or not glob.has_magic(str(path)):
            files.append(path)
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 - the pattern may be absolute
            files.extend(map(Path, matches))
        else:
            unmatched.append(path)
    return list(dict.fromkeys(files)), unmatched


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_cached(path: Path, key: bytes) -> bytes | None:
    """Return the bytes that `write_cached` wrote under a key; None where absent, damaged or of another key."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, cached = content[:32], content[32:]
    return cached if hashlib.sha256(key + cached).digest() == digest else None


def write_cached(path: Path, key: bytes, content: bytes) -> None:
    """Write bytes under a key, in place of those under any other."""
    with replacing(path) as draft:
        draft.write_bytes(hashlib.sha256(key + content).digest() + content)
