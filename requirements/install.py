"""Builds `.venv` from a hash lock and keeps it current: `install.py runtime|test|dev`.

States of `.venv`: absent; unfinished (no stamp, or the mark stands: rebuilt from nothing); current at a level
(its stamp holds the digest of lock, interpreter and place). The mark is set before pip writes, lifted after
the stamps, so a kill at any point leaves a state that the next call mends. A current environment is found
without a lock, a write or the network. Levels nest (runtime < test < dev) with equal pins: a higher one only
adds.

Runs before anything is installed: the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / ".venv.lock"
UNFINISHED = VENV / "unfinished"
LEVELS = ("runtime", "test", "dev")
WAIT_S = 1800
# Settings of a user's own pip that would send the packages elsewhere than into the environment.
REDIRECTS = (
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_REQUIRE_VIRTUALENV",
    "PYTHONPATH",
    "PYTHONHOME",
)


class SetupError(Exception):
    """The environment could not be built; the message names the remedy."""


def say(text: str) -> None:
    """One progress line, on stderr so that a command's own output stays clean."""
    sys.stderr.write(f"setup  {text}\n")
    sys.stderr.flush()


def stamp(name: str) -> Path:
    """Where the digest of a finished level, or of our own package's build, stands."""
    return VENV / f"stamp-{name}"


def digest(path: Path) -> str:
    """What an installation of `path` depends on: its bytes, the interpreter and the clone's place."""
    whole = hashlib.sha256(path.read_bytes())
    whole.update(f"\0{sys.version}\0{sys.base_prefix}\0{VENV}".encode())
    return whole.hexdigest()


def lock_of(level: str) -> Path:
    """The lock file of a level."""
    return ROOT / "requirements" / f"{level}.txt"


def stamped(name: str, source: Path) -> bool:
    """Whether the stamp `name` was made from `source` as it is now."""
    try:
        return stamp(name).read_text() == digest(source)
    except FileNotFoundError:
        return False


def finished() -> bool:
    """Whether `.venv` is whole and its interpreter still runs (the one it was made from may be gone)."""
    if UNFINISHED.exists() or not any(stamped(level, lock_of(level)) for level in LEVELS):
        return False
    alive = subprocess.run([VENV / "bin" / "python", "-I", "-c", ""], capture_output=True, check=False)
    return alive.returncode == 0


def current(level: str) -> bool:
    """Whether nothing is left to do for a level."""
    return stamped(level, lock_of(level)) and stamped("package", ROOT / "pyproject.toml") and finished()


@contextlib.contextmanager
def exclusive() -> Iterator[int]:
    """Holds the clone's set-up lock; pip inherits it, so that one outliving a killed set-up is waited for."""
    told = False
    deadline = time.monotonic() + WAIT_S
    while True:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `git clean` may have removed the file that we hold; only the one at the path counts.
            if LOCK.exists() and os.fstat(fd).st_ino == LOCK.stat().st_ino:
                break
        except BlockingIOError:
            if not told:
                say("another set-up of this clone is running; waiting for it")
                told = True
        os.close(fd)
        if time.monotonic() > deadline:
            raise SetupError(f"another set-up still holds {LOCK.name} after {WAIT_S} s; end it and try again")
        time.sleep(0.2)
    try:
        yield fd
    finally:
        os.close(fd)


def run(*command: str | Path, lock: int, remedy: str) -> None:
    """Runs one step quietly; on failure shows the end of what it said and the remedy."""
    env = {name: value for name, value in os.environ.items() if name not in REDIRECTS}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace").strip().splitlines()[-25:]
        raise SetupError("\n       ".join([*tail, remedy]))


def remove() -> None:
    """Removes an environment that cannot be mended in place."""
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)


def build(level: str, lock: int) -> None:
    """Brings `.venv` to a level: from nothing, or from a whole lower one by adding to it."""
    pip: list[str | Path] = [VENV / "bin" / "python", "-I", "-m", "pip", "--quiet"]
    if not finished():
        remove()
        say(f"creating .venv with Python {sys.version.split()[0]}")
        make: list[str | Path] = [sys.executable, "-I", "-m", "venv", VENV]
        run(*make, lock=lock, remedy="the venv module failed: is there room on the disk?")
    UNFINISHED.touch()
    if not stamped(level, lock_of(level)):
        wanted = lock_of(level)
        pins = sum("==" in line for line in wanted.read_text().splitlines())
        say(f"installing {pins} packages of requirements/{wanted.name}, each checked against its hash")
        # Wheels only: building a source archive would fetch build tools that no hash covers.
        install = [*pip, "install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", wanted]
        hint = "no package registry in reach, or no wheel for this Python"
        run(*install, lock=lock, remedy=f"{hint}: try again, or with PYTHON=python3.12")
    own = [*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", ROOT]
    run(*own, lock=lock, remedy="our own package did not build: see pyproject.toml")
    run(*pip, "check", lock=lock, remedy="the lock does not fit together: run `make lock`")
    for name in LEVELS[: LEVELS.index(level) + 1]:
        stamp(name).write_text(digest(lock_of(name)))
    stamp("package").write_text(digest(ROOT / "pyproject.toml"))
    UNFINISHED.unlink()


def main(arguments: list[str]) -> int:
    """Exit codes: 0 current, 1 failed, 2 bad usage."""
    if len(arguments) != 1 or arguments[0] not in LEVELS:
        say(f"usage: install.py {'|'.join(LEVELS)}")
        return 2
    level = arguments[0]
    try:
        if current(level):
            return 0
        with exclusive() as lock:
            if not current(level):
                start = time.monotonic()
                build(level, lock)
                say(f"done in {time.monotonic() - start:.0f} s")
    except SetupError as error:
        say(f"failed\n       {error}")
        return 1
    except PermissionError as error:
        owner = "whoever made it must remove it first: make clean" if VENV.exists() else "clone it anew"
        say(f"failed: {error.filename} belongs to another user; {owner}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
