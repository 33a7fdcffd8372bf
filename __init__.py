"""The package shoal for whoever stands in the folder beside a clone that is called shoal.

There `import shoal` finds this folder before the installed package, so this file loads the package that lies in scripts/.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if getattr(sys.modules.get("shoal"), "__file__", __file__) == __file__:  # pytest imports this file too, by the folder's name
    _package = Path(__file__).parent / "scripts"
    _spec = spec_from_file_location("shoal", _package / "__init__.py", submodule_search_locations=[str(_package)])
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["shoal"] = module_from_spec(_spec)  # what an import gives is what stands here at its end
    _spec.loader.exec_module(sys.modules["shoal"])
