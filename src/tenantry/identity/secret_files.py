"""Private files: a secret of the installation, on disk, for its owner only.

A file is made whole or not at all: written under another name with mode 0600, synced, then linked into place,
so that of two processes that start at once one wins and both read the winner's bytes. Never follows a link,
never changes the mode of what it did not make.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tenantry.core.clock import Clock
from tenantry.core.errors import InvalidInputError

FILE_BYTES_MAX = 16 * 1024


def read_private_file(path: Path) -> bytes | None:
    """The file's bytes; None where there is none.

    Raises `InvalidInputError` when it is no regular file of this user's, when others may read or write it, or
    when it is longer than 16 KiB.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be opened: {error.strerror}", path=str(path)) from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise InvalidInputError(f"{path} is not a regular file of this user", path=str(path))
        if found.st_mode & 0o077:
            raise InvalidInputError(f"{path} is open to others; run: chmod 600 {path}", path=str(path))
        content = os.read(handle, FILE_BYTES_MAX + 1)
    finally:
        os.close(handle)
    if len(content) > FILE_BYTES_MAX:
        raise InvalidInputError(f"{path} is longer than {FILE_BYTES_MAX} bytes", path=str(path))
    return content


def create_private_file(path: Path, content: bytes, clock: Clock) -> bytes:
    """Make the file unless it is there; returns what it now holds, which may be another process's bytes."""
    draft = _write_draft(path, content, clock)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path, follow_symlinks=False)
    finally:
        draft.unlink()
    _sync_folder(path.parent)
    found = read_private_file(path)
    if found is None:
        raise InvalidInputError(f"{path} went away while it was made", path=str(path))
    return found


def replace_private_file(path: Path, content: bytes, clock: Clock) -> None:
    """Put new content in the file's place, in one step."""
    draft = _write_draft(path, content, clock)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_draft(path: Path, content: bytes, clock: Clock) -> Path:
    draft = path.with_name(f".{path.name}.{clock.random_bytes(8).hex()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
