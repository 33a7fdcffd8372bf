"""One thread for torch, as in every run: sums split over threads have other bits, and idle threads burn the cores.

No example of a property has a deadline: a busy machine is not a fault. Runs are signed with a secret of the tests' own. Signals
that `nohup` or a shell's `&` ignores are heard, because children inherit what is ignored, and tests send them. Bars of tqdm
start no thread that watches them: it would stay, and later tests would find a process of several threads.
"""

import os
import signal
import tempfile

from hypothesis import settings
from tqdm import tqdm

KEYS = tempfile.TemporaryDirectory(prefix="shoal-keys-")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SHOAL_KEYS"] = KEYS.name
settings.register_profile("shoal", deadline=None)
settings.load_profile("shoal")
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
tqdm.monitor_interval = 0
