"""Natural partitions: the client of each example is in the data. And partitions by Flower Datasets' partitioners."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shoal import Federated
from shoal.envs.datasets import Examples
from shoal.envs.partitioners import NUMBER, Partitioned, as_partition, is_partitioner
from shoal.envs.population import Population
from shoal.jobs.populations import populated
from shoal.nets.models import mlp
from shoal.protocol.errors import UserError

RNG = np.random.Generator(np.random.Philox(11))
X, Y = RNG.normal(size=(60, 4)).astype(np.float32), RNG.integers(0, 3, 60)
WHO = np.array([f"u{n % 7}" for n in range(60)])
HELD = (X[:5], Y[:5])


def settings(**more: Any) -> Any:
    plain = {"partition": "natural", "partition_by": "", "clients": 7, "held_out": 0.2, "alpha": 0.5}
    return SimpleNamespace(**{**plain, "shards_per_client": 2, "classes": 2, **more})


def by_user(found: Population) -> None:
    assert found.clients == 7
    for client in range(7):
        mine = found.examples(client)
        np.testing.assert_array_equal(mine.x, X[f"u{client}" == WHO])
        np.testing.assert_array_equal(mine.y, Y[f"u{client}" == WHO])


def test_the_last_array_is_the_client_of_each_example() -> None:
    by_user(populated(((X, Y, WHO), HELD), settings(), 0))
    by_user(populated(((X, Y, WHO.tolist()), (X[:5], Y[:5], WHO[:5])), settings(), 3))
    weighted = populated(((X, Y, np.arange(60), WHO), HELD), settings(), 0)
    by_user(weighted)
    np.testing.assert_array_equal(weighted.examples(2).weight, np.arange(60)[WHO == "u2"])


def test_a_column_of_a_table_is_the_client_of_each_example_and_no_input() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({**{f"x{n}": X[:, n] for n in range(4)}, "user": WHO, "label": Y})
    by_user(populated(((frame, "label"), (frame[:5], "label")), settings(partition_by="user"), 0))


def test_examples_held_out_at_random_leave_each_client_its_own() -> None:
    found = populated((X, Y, WHO), settings(), 0)
    assert found.held_out is not None
    assert len(found.held_out) == 12
    for client in range(7):
        mine = {row.tobytes() for row in X[f"u{client}" == WHO]}
        assert {row.tobytes() for row in found.examples(client).x} <= mine


@pytest.mark.parametrize(
    ("data", "more", "says"),
    [
        ((X, Y), {}, r"partition=natural: data is \(x, y\): expected \(x, y, client\)"),
        ((X, Y, WHO), {"partition_by": "user"}, "partition_by=user: the data are arrays, which have no columns"),
        ((X, Y, WHO), {"clients": 9}, "clients=9: the data has 7 clients; allowed is from 1 to that"),
        ((X, Y, WHO[:-1]), {}, r"clients of the examples have shape \[59\]: expected \[60\]"),
        (Examples(X, Y), {}, "partition=natural: data is of type Examples"),
        ((X, Y, WHO, WHO), {"partition": "iid"}, r"tuple of 4 arrays: \(x, y, weight, client\) needs partition=natural"),
        (
            (X, Y, np.arange(60)),
            {"clients": 60},
            "12 of 60 clients have no examples left beside the held-out 12 of 60: held_out",
        ),
    ],
)
def test_data_that_name_no_clients_are_refused_in_one_line(data: Any, more: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        populated(data, settings(**more), 0)
    assert "\n" not in str(refused.value)


def test_a_column_that_is_not_there_is_answered_with_those_that_are() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"age": X[:, 0], "user": WHO, "label": Y})
    for by, says in (
        ("", "partition_by names the column of the clients; partition_by=one of age, user"),
        ("usr", "partition_by=usr: the table has the columns age, user"),
        ("label", "partition_by=label: the table has the columns age, user"),
    ):
        with pytest.raises(UserError, match=says):
            populated((frame, "label"), settings(partition_by=by), 0)


def test_partition_by_without_a_natural_partition_has_no_effect_and_is_refused() -> None:
    with pytest.raises(UserError, match="partition_by=user: partition_by is a setting of partition=natural; this job has"):
        Federated(mlp, (X, Y), partition_by="user", partition="iid")


# Flower Datasets' partitioners ----------------------------------------------------------------------------------------------


class Table:
    """What a partition asks of a Hugging Face table, and nothing else of it."""

    column_names = property(lambda self: [*self.columns])

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def with_format(self, kind: str | None) -> Table:
        return self

    def select(self, rows: Any) -> Table:
        return Table({name: [column[row] for row in rows] for name, column in self.columns.items()})

    def add_column(self, name: str, column: Any) -> Table:
        return Table({**self.columns, name: column})

    def __getitem__(self, which: Any) -> Any:
        return self.columns if isinstance(which, slice) else self.columns[which]


class ByLabel:
    """A partitioner as Flower Datasets writes them, with a partition for each label: `dataset` may be assigned once."""

    given: Any = None

    @property
    def dataset(self) -> Any:
        return self.given

    @dataset.setter
    def dataset(self, table: Any) -> None:
        if self.given is not None:
            raise ValueError("The dataset should be assigned only once to the partitioner.")
        self.given = table

    @property
    def num_partitions(self) -> int:
        return len(set(self.dataset["label"]))

    def load_partition(self, partition_id: int) -> Any:
        return self.dataset.select([row for row, label in enumerate(self.dataset["label"]) if label == partition_id])


def test_a_partitioner_divides_the_rows_of_its_table() -> None:
    columns = {**{f"x{n}": X[:, n] for n in range(4)}, "label": Y}
    both = settings(partition=as_partition(ByLabel()), clients=3)
    for data in (((Table(columns), "label"), HELD), (Table(columns), "label")):
        for seed in (0, 1):  # a partitioner takes one table, and each population needs its own
            found = populated(data, both, seed)
            assert [set(found.examples(client).y) for client in range(3)] == [{0}, {1}, {2}]
            assert sum(len(found.examples(client)) for client in range(3)) == (60 if data[1] is HELD else 48)


def test_a_partitioner_is_a_setting_like_a_function() -> None:
    job = Federated(mlp, (Table({"x": X, "label": Y}), "label"), partition=ByLabel(), clients=3, cohort=2)
    assert isinstance(job.problem.partition, Partitioned)
    assert "partition" not in job.plain()
    assert not is_partitioner(ByLabel)
    with pytest.raises(UserError, match="partition=4: must be a function of yours, or one of auto, iid"):
        Federated(mlp, (X, Y), partition=4)


def test_a_partitioner_with_other_clients_or_a_table_of_its_own_is_refused() -> None:
    data = (Table({"x": X, "label": Y}), "label")
    with pytest.raises(UserError, match="clients=5: partition ByLabel makes 3 partitions: clients=3"):
        populated(data, settings(partition=as_partition(ByLabel()), clients=5), 0)
    used = ByLabel()
    used.dataset = data[0]
    with pytest.raises(UserError, match="partition ByLabel has a data set already: give a new one"):
        populated(data, settings(partition=as_partition(used), clients=3), 0)
    odd = (Table({"x": X, "kind": Y}), "kind")
    with pytest.raises(UserError, match="partition ByLabel raised KeyError: 'label'"):
        populated(odd, settings(partition=as_partition(ByLabel()), clients=3), 0)


def test_flower_datasets_own_partitioners_divide_arrays_and_tables() -> None:
    partitioners = pytest.importorskip("flwr_datasets.partitioner", reason="Flower Datasets is not installed")
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": X.tolist(), "user": WHO.tolist(), "label": Y.tolist()})
    iid = partitioners.IidPartitioner(num_partitions=4)
    for data in ((X, Y), (table.remove_columns("user"), "label")):
        found = populated((data, HELD), settings(partition=as_partition(iid), clients=4), 0)
        rows = np.concatenate([found.examples(client).x for client in range(4)])
        np.testing.assert_array_equal(rows, X)
    skewed = partitioners.DirichletPartitioner(num_partitions=4, partition_by="label", alpha=0.3, seed=5, min_partition_size=1)
    found = populated(((X, Y), HELD), settings(partition=as_partition(skewed), clients=4), 0)
    skewed.dataset = datasets.Dataset.from_dict({"label": Y.tolist(), NUMBER: list(range(60))})
    for client in range(4):
        np.testing.assert_array_equal(found.examples(client).x, X[skewed.load_partition(client)[NUMBER]])
