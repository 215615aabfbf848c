"""One script per stage, run as `python -m stages.<stage>` from the root of the repository.

The code beside the scripts is first on the path, so an experiment in a temporary folder runs its own version.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
