"""What cannot be done, said before anything is loaded."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from torch_featviz.choices import FIGURES, check_cmap, check_method, check_model, is_file
from torch_featviz.errors import FileError, OptionError


def check(arguments: Namespace, ending: str = "") -> None:
    """Look at the words alone, and at the files that they name.

    Args:
        arguments: of a command.
        ending: of the file that it writes.
    Raises:
        OptionError, FileError: there is no such model, method, colour map or folder, or nothing can be written there.
    """
    asked = vars(arguments)
    if ending:
        _check_out(arguments.out, ending)
    if "model" in asked and not is_file(arguments.model):
        check_model(arguments.model)
        if arguments.size is not None:
            raise OptionError(f"--size is for FILE.py:NAME; {arguments.model} has a size of its own.")
    if asked.get("size") is not None and min(arguments.size) < 1:
        raise OptionError(f"--size must be two numbers of 1 or more, got {arguments.size[0]} {arguments.size[1]}.")
    if asked.get("batch", 1) < 1:
        raise OptionError(f"--batch must be at least 1, got {arguments.batch}.")
    for method in asked.get("method") or ():
        check_method(method)
    if asked.get("cmap") is not None:
        check_cmap(arguments.cmap)
    if "folder" in asked and not os.path.isfile(arguments.folder / FIGURES):
        raise FileError(f"{str(arguments.folder)!r} holds no {FIGURES}; give a folder that a Monitor wrote to.")
    for path in asked.get("image") or ():
        if _missing(path):
            raise FileError(f"no image file {str(path)!r}.")
    weights = asked.get("weights")
    if weights is not None and _missing(weights):
        raise FileError(f"no weights file {str(weights)!r}.")
    training = asked.get("training")
    if training is not None and not os.path.isdir(training):
        raise FileError(f"no folder {str(training)!r}; --training takes one that a Monitor wrote to.")


def _missing(path: Path) -> bool:
    """Whether there is no such file; what else is wrong with it is said where it is read."""
    try:
        path.stat()
    except (FileNotFoundError, ValueError):  # no file has a name that holds a null byte, or half a letter
        return True
    except OSError:
        pass
    return False


def _check_out(path: Path, ending: str) -> None:
    if path.suffix.lower() != ending:
        raise OptionError(f"--out must end in {ending!r}, the one kind of file that this writes, got {str(path)!r}.")
    if os.path.isdir(path):
        raise FileError(f"{str(path)!r} is a folder; name a file with --out.")
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(f"cannot write {str(path)!r}: no way into {str(folder)!r}; choose a folder you may write to.")
