"""Build every sample model: ``python samples/build_all.py [FOLDER]`` (default: samples/models).

The trained classifier is built only if scikit-learn, whose images it learns, is installed; otherwise its committed file
is used as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path

from builder import MODELS, save

__all__ = ["TRAINED", "build_all", "names"]

TRAINED = "digits_mlp"


def names() -> list[str]:
    """Return the names of all samples, each with a script ``build_NAME.py`` beside this one."""
    scripts = Path(__file__).resolve().parent.glob("build_*.py")
    return sorted(path.stem.removeprefix("build_") for path in scripts if path.stem != "build_all")


def build_all(folder: Path = MODELS, *, train: bool = False) -> list[Path]:
    """Write all sample models into ``folder``; without ``train``, the trained one is the committed file."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name in names():
        if name == TRAINED and not train:
            path = folder / f"{name}.onnx"
            if path != MODELS / path.name:
                shutil.copyfile(MODELS / path.name, path)
        else:
            path = save(importlib.import_module(f"build_{name}").build(), folder)
        written.append(path)
    return written


def main() -> None:
    """Build into the folder named on the command line."""
    train = importlib.util.find_spec("sklearn") is not None
    if not train:
        print(f"{TRAINED}: scikit-learn is not installed, the committed model stays (see build_{TRAINED}.py)")
    for path in build_all(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS, train=train):
        print(path)


if __name__ == "__main__":
    main()
