"""joblib's calls in a pool: the same results as a serial loop, whatever happens to processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
from joblib import Parallel, delayed
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.tree import DecisionTreeClassifier

import shoal
from shoal.protocol.errors import UserError
from shoal.protocol.trusted import LARGE, Parcel, opened, pack
from shoal.tasks.backend import LONG, Backend, Batch
from shoal.tasks.futures import RemoteTraceback
from shoal.tasks.pools import Pools
from shoal.tasks.shared import KEPT, Shared

SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    its = Pools()
    yield its
    its.close()


@pytest.fixture
def backend(pools: Pools) -> Backend:
    return Backend(pools, nesting_level=0)


def children() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True)}


def kill_one_of(pids: set[int]) -> None:
    """Kill a process that has no children: an actor."""
    for pid in sorted(pids, reverse=True):
        try:
            if not psutil.Process(pid).children():
                os.kill(pid, signal.SIGKILL)
                return
        except psutil.NoSuchProcess:
            continue


def tree() -> GridSearchCV:
    grid = {"max_depth": [1, 2, 4, 8], "min_samples_leaf": [1, 2, 4], "criterion": ["gini", "entropy"]}
    return GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=5)


def fits(kind: str, X: Any, y: Any) -> list[Any]:
    """Numbers that a model of scikit-learn has after its fit, of which the last bit counts."""
    if kind == "grid":
        return [tree().fit(X, y).cv_results_["mean_test_score"].tolist()]
    if kind == "forest":
        forest = RandomForestClassifier(20, random_state=0).fit(X, y)
        return [forest.predict_proba(X).tolist(), forest.feature_importances_.tolist()]
    if kind == "cross":
        return [cross_val_score(LogisticRegression(max_iter=20, tol=1), X / 16, y, cv=4).tolist()]
    each = [("tree", DecisionTreeClassifier(random_state=1)), ("forest", RandomForestClassifier(5, random_state=2))]
    stack = StackingClassifier(each, DecisionTreeClassifier(random_state=3), cv=3).fit(X, y)
    return [stack.predict_proba(X).tolist()]


@pytest.mark.parametrize("kind", ["grid", "forest", "cross", "stack"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_models_of_scikit_learn_have_the_bits_of_the_serial_loop(kind: str, backend: Backend) -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X[:400], y[:400]
    before = set(SHM.iterdir())
    serial = fits(kind, X, y)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert fits(kind, X, y) == serial
    assert set(SHM.iterdir()) <= before


def test_a_killed_worker_costs_no_fit_of_a_search(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X[:600], y[:600]
    serial = tree().fit(X, y)
    many = 0

    def take(self: Batch, first: int, results: Any) -> None:
        nonlocal many
        many += 1
        if many in (2, 5):  # while batches are with both actors
            kill_one_of(children())
        whole(self, first, results)

    whole = Batch.take
    monkeypatch.setattr(Batch, "take", take)
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found = tree().fit(X, y)
    assert many >= 5
    assert found.cv_results_["mean_test_score"].tolist() == serial.cv_results_["mean_test_score"].tolist()
    assert found.best_params_ == serial.best_params_


def test_a_call_that_ends_its_process_each_time_is_named(pools: Pools) -> None:
    with (
        joblib.parallel_config(backend=Backend(pools, retries=0), n_jobs=2),
        pytest.raises(shoal.WorkerLost, match=r"with 1 calls of ends: .*ended its process"),
    ):
        Parallel()(delayed(ends)(at) for at in range(2))


def ends(at: int) -> None:
    os._exit(at)


def test_results_come_in_the_form_that_was_asked_for(backend: Backend) -> None:
    calls = [delayed(math.sqrt)(x) for x in range(40)]
    roots = [math.sqrt(x) for x in range(40)]
    with joblib.parallel_config(backend=backend):  # all cores, unless n_jobs says else
        assert Parallel(n_jobs=2)(calls) == roots
        assert list(Parallel(n_jobs=2, return_as="generator")(calls)) == roots
        assert sorted(Parallel(n_jobs=2, return_as="generator_unordered")(calls)) == roots
        with Parallel(n_jobs=2, batch_size=3) as parallel:
            assert parallel(calls) == parallel(calls) == roots
        assert Parallel(n_jobs=1)(calls) == roots
        assert joblib.effective_n_jobs(-1) == joblib.effective_n_jobs(-2) + (joblib.cpu_count() > 1) == joblib.cpu_count()


def test_functions_and_classes_that_a_process_did_not_see_defined_travel(backend: Backend) -> None:
    class Late:
        def __init__(self, x: int) -> None:
            self.x = x

    with joblib.parallel_config(backend=backend, n_jobs=2):
        Parallel()(delayed(abs)(x) for x in range(4))  # the processes are there
        found = Parallel()(delayed(lambda x: Late(x + 1))(x) for x in range(4))
    assert [type(one) is Late and one.x for one in found] == [1, 2, 3, 4]


def fails(x: int) -> int:
    raise KeyError(x)


def test_an_error_has_the_traceback_of_the_other_process_and_the_next_call_works(backend: Backend) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        with pytest.raises(KeyError, match="3") as raised:
            Parallel()(delayed(fails)(3) for _ in range(8))
        assert isinstance(raised.value.__cause__, RemoteTraceback)
        assert "in fails" in str(raised.value.__cause__)
        assert Parallel()(delayed(abs)(-x) for x in range(4)) == [0, 1, 2, 3]


def test_an_argument_that_cannot_travel_is_named_and_nothing_waits(backend: Backend) -> None:
    calls = [delayed(max)([1, threading.Lock()], key=id) for _ in range(4)]
    with joblib.parallel_config(backend=backend, n_jobs=2), pytest.raises(UserError, match=r"args\[0\]\[1\] cannot travel"):
        Parallel()(calls)


def test_a_call_in_a_call_is_made_where_it_is(backend: Backend) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2, inner_max_num_threads=1):
        found = Parallel()(delayed(nested)(os.getpid()) for _ in range(4))
    assert found == [True] * 4


def test_a_call_in_a_call_has_the_threads_of_its_process(backend: Backend) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2, inner_max_num_threads=3):
        assert Parallel()(delayed(joblib.effective_n_jobs)(at) for at in (1, 2, 8, -1)) == [1, 2, 3, min(3, joblib.cpu_count())]


def nested(program: int) -> bool:
    inner = Parallel(n_jobs=4)(delayed(os.getpid)() for _ in range(4))
    return set(inner) == {os.getpid()} and os.getpid() != program


def test_processes_compute_with_the_threads_that_are_asked_for(backend: Backend) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2, inner_max_num_threads=3):
        found = Parallel()(delayed(threads)() for _ in range(4))
    assert found == [(3, "3")] * 4


def threads() -> tuple[int, str]:
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    return min(its["num_threads"] for its in threadpool_info()), os.environ["OMP_NUM_THREADS"]


def test_calls_of_several_threads_do_not_meet(pools: Pools) -> None:
    found: dict[int, Any] = {}

    def run(at: int) -> None:
        with joblib.parallel_config(backend=Backend(pools), n_jobs=2):
            found[at] = Parallel()(delayed(pow)(x, at) for x in range(200))

    many = [threading.Thread(target=run, args=(at,)) for at in range(3)]
    for one in many:
        one.start()
    for one in many:
        one.join()
    assert found == {at: [x**at for x in range(200)] for at in range(3)}


def test_processes_are_used_by_one_block_after_another_and_end_when_idle() -> None:
    pools = Pools()
    seen = []
    for idle in (60.0, 60.0, 0.0):
        with joblib.parallel_config(backend=Backend(pools, idle_worker_timeout=idle), n_jobs=2):
            seen.append(set(Parallel()(delayed(pid)(x) for x in range(8))))
    assert len(set.union(*seen)) <= 2
    for _ in range(1_000):
        if not any(map(psutil.pid_exists, seen[0])):
            break
        threading.Event().wait(0.01)
    assert not any(map(psutil.pid_exists, seen[0]))


def pid(x: int) -> int:
    threading.Event().wait(0.01)
    return os.getpid()


def test_a_generator_that_nobody_wants_any_more_ends_its_calls(pools: Pools, tmp_path: Path) -> None:
    with joblib.parallel_config(backend=Backend(pools), n_jobs=2):
        results = Parallel(return_as="generator")(delayed(waits)(x, str(tmp_path)) for x in range(6))
        assert next(results) == 0
        with pytest.warns(UserWarning, match="cancelled"):
            results.close()
        assert Parallel()(delayed(abs)(-x) for x in range(4)) == [0, 1, 2, 3]
    assert len(list(tmp_path.iterdir())) < 6


def waits(x: int, folder: str) -> int:
    (Path(folder) / str(x)).touch()
    threading.Event().wait(60 if x else 0)
    return x


PROGRAM = """
import joblib, os, sys, threading, time
import shoal

def waits(x):
    os.write(1, b"%d\\n" % os.getpid())
    threading.Event().wait(60)

joblib.Parallel(n_jobs=2, backend="shoal")(joblib.delayed(waits)(x) for x in range(4))
"""


def test_control_c_leaves_no_process() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pids = [int(program.stdout.readline()) for _ in range(2)]
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not any(map(psutil.pid_exists, pids))


def test_joblib_knows_the_backend_whichever_is_imported_first() -> None:
    ask = "print('shoal' in joblib.parallel.BACKENDS, 'shoal.tasks.pool' in sys.modules)"
    ran = partial(subprocess.run, capture_output=True, text=True, check=True)
    for first in ("joblib, shoal", "shoal, importlib.util; importlib.util.find_spec('joblib'); import joblib"):
        assert ran([sys.executable, "-c", f"import sys, {first}; {ask}"]).stdout == "True False\n"
    assert ran([sys.executable, "-c", "import sys, shoal; print('joblib' in sys.modules)"]).stdout == "False\n"


def test_an_argument_that_the_backend_lacks_is_refused() -> None:
    assert shoal.__version__  # joblib knows the backend since shoal was imported
    with pytest.raises(UserError, match="no argument colour"):
        joblib.parallel_config(backend="shoal", colour="red")


# Arrays


class Places:
    """Puts arrays into shared memory, and counts them."""

    def __init__(self) -> None:
        self.many = 0

    def __call__(self, value: Any) -> Parcel:
        self.many += 1
        return pack(value)


def test_an_array_is_put_once_when_a_second_batch_has_it() -> None:
    places = Places()
    shared = Shared(packed=places)
    X, small = np.arange(LARGE, dtype=np.float64), np.arange(10)
    parcels = [shared.parcel([(X, small, at)]) for at in range(5)]
    assert places.many == 1
    assert [len(held) for _, held in parcels] == [0, 1, 1, 1, 1]
    assert all(parcel.nbytes < 1_000 for parcel, held in parcels[1:])
    for at, (parcel, _) in enumerate(parcels):
        [(its, other, number)] = opened(parcel.data)
        assert (its == X).all()
        assert its.flags.writeable
        assert (other.tolist(), number) == (list(range(10)), at)


def test_views_keep_their_values_and_their_order() -> None:
    shared = Shared()
    whole = np.arange(4 * LARGE, dtype=np.float64).reshape(4, -1)
    for array in (whole[:, ::2], whole.T, np.asfortranarray(whole), whole[::-1]):
        for _ in range(3):
            parcel, _ = shared.parcel([array])
            [its] = opened(parcel.data)
            assert (its == array).all()
            assert its.flags.f_contiguous == array.flags.f_contiguous


def test_arrays_of_joblib_s_max_nbytes_cannot_be_written() -> None:
    shared = Shared(10 * LARGE)
    small, large = np.zeros(LARGE, np.uint8), np.zeros(10 * LARGE, np.uint8)
    for _ in range(2):
        parcel, held = shared.parcel((small, large))
    assert [its.flags.writeable for its in opened(parcel.data)] == [True, False]
    assert len(held) == 2


def test_an_array_that_is_gone_is_not_taken_for_another_at_its_place() -> None:
    shared = Shared()
    for at in range(50):
        parcel, _ = shared.parcel([np.full(LARGE, at, np.uint8)])
        [its] = opened(parcel.data)
        assert (its == at).all()


def test_a_bounded_number_of_arrays_lies_in_shared_memory_at_a_time() -> None:
    places = Places()
    shared = Shared(packed=places)
    arrays = [np.full(LARGE, at, np.uint8) for at in range(KEPT + 3)]
    for _ in range(2):
        parcels = [shared.parcel(array) for array in arrays]
    assert places.many == KEPT
    assert [int(opened(parcel.data)[0]) for parcel, _ in parcels] == [at % 256 for at in range(KEPT + 3)]
    del arrays[:3]
    shared.parcel(arrays[-1])
    assert places.many == KEPT + 1


def test_what_a_call_writes_to_a_file_of_the_user_s_is_there(backend: Backend, tmp_path: Path) -> None:
    output = np.memmap(tmp_path / "sums", np.float64, "w+", shape=(4, LARGE))
    with joblib.parallel_config(backend=backend, n_jobs=2):
        Parallel()(delayed(write)(output, at) for at in range(4))
    assert (output == np.arange(4)[:, None]).all()


def write(output: Any, at: int) -> None:
    output[at] = at


# Batches


def test_calls_that_turn_out_long_do_not_wait_behind_each_other(backend: Backend) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found = Parallel(batch_size=4, pre_dispatch="all")(delayed(slow)(x) for x in range(4))
    assert [x for x, _ in found] == [0, 1, 2, 3]
    assert len({pid for _, pid in found}) == 2  # though joblib made one batch of them


def slow(x: int) -> tuple[int, int]:
    threading.Event().wait(LONG * 1.1)
    return x, os.getpid()


@pytest.mark.parametrize("place", ["file", "zip"])
def test_other_modules_are_imported_as_without_shoal(tmp_path: Path, place: str) -> None:
    texts = {"joblib.py": "x = 1", "other.py": "x = 2"}  # a file of that name which is not joblib, and a neighbour of it
    found = tmp_path / "found.zip" if place == "zip" else tmp_path
    with zipfile.ZipFile(found, "w") if place == "zip" else nullcontext() as archive:
        for name, text in texts.items():
            archive.writestr(name, text) if archive else (found / name).write_text(text)
    program = f"import sys; sys.path.insert(0, {str(found)!r}); import shoal, joblib, other; print(joblib.x, other.x)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "1 2\n"
