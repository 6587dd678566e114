"""What every script of this folder does alike: arguments, one-line errors, whole outputs."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from streamjax.errors import InputError


def parser(doc: str) -> argparse.ArgumentParser:
    """The script's docstring is its help, examples included."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(main: Callable[[], int | None]) -> None:
    """Exits with main's code (None: 0); bad input is one line on stderr and code 2."""
    try:
        sys.exit(main())
    except (InputError, FileNotFoundError, FileExistsError) as error:
        told = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else error
        print(f"{Path(sys.argv[0]).name}: {told}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def fresh(target: Path) -> Path:
    """The target's full path. FileExistsError when it exists, unless it is an empty folder."""
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target}: exists already, wanted a new folder: name another one")
    return target


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` (a fresh one) when all went well, else vanishes."""
    target = fresh(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.mkdir()
    try:
        yield beside
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
