"""Puts libhdcr.so beside the package, from where cargo builds it, when it is there."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithLibrary(build_py):
    def run(self) -> None:
        super().run()
        root = Path(__file__).resolve().parent.parent
        built = root / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "libhdcr.so"
        if built.is_file():
            shutil.copy2(built, Path(self.build_lib) / "hdcr" / "libhdcr.so")
        else:
            self.warn(f"{built} is not there (cargo build --release -p hdcr): the package looks for it when it is used")


setup(cmdclass={"build_py": WithLibrary})
