"""Print what the project depends on, extras included: ``dependencies.py pyproject.toml EXTRA``.

So an image can install the dependencies in a layer of their own, before the source is copied.
"""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for name in sys.argv[2:] for line in extras[name])]
    print("\n".join(wanted))
