"""Where the time of compare() goes: python benchmarks/profile.py CASE. The work is done in profile_parts.py."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    from profile_parts import main

    main()
else:
    # The standard library has a module of this name, which cProfile imports and torch needs. It is handed on to them.
    source = Path(sysconfig.get_path("stdlib")) / "profile.py"
    spec = importlib.util.spec_from_file_location(__name__, source)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
