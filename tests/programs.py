"""Programs that tests run in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path


def ran(program: Path, folder: Path, *words: object) -> str:
    """What a program prints, run in a folder without a network."""
    environment = {
        **os.environ,
        "HF_HOME": str(folder / ".cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-W", "ignore", program, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
