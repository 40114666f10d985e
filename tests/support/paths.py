"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
NO_NETWORK = Path(__file__).parent / "no_network"  # on PYTHONPATH it keeps a program from the network
