"""One thread for torch, as in every run: sums split over threads have other bits, and idle threads burn the cores.

No example of a property has a deadline: a busy machine is not a fault.
"""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
