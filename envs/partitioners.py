"""Partitioners of Flower Datasets (flwr_datasets.partitioner) as partitions.

The one idea: a partitioner divides a table, so it is given a table that has each row's number as a column, and these numbers
are read back from the partitions: indices, as from any partition. A partitioner is known by what it can do, so Flower Datasets
is not imported here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.protocol.errors import UserError

NUMBER = "shoal_row"  # the column of rows' numbers
PLAIN = ("label", "y")  # the columns of labels, where the data are arrays


def is_partitioner(given: Any) -> bool:
    """True if an object divides a table as Flower Datasets' partitioners do."""
    return callable(getattr(given, "load_partition", None)) and hasattr(type(given), "num_partitions")


def as_partition(given: Any) -> Any:
    """A partitioner as a function (labels, clients, seed) -> indices of each client; any other object as it is."""
    return Partitioned(given) if is_partitioner(given) else given


class Partitioned:
    """The partition that a partitioner makes. The partitioner has its own seed, so the run's seed changes nothing.

    table: a Hugging Face table whose columns the partitioner sees; None: the data are arrays, and the table has the labels as
    columns PLAIN. rows: the rows of `table` that are divided, [n].
    """

    def __init__(self, partitioner: Any, table: Any = None, rows: npt.NDArray[np.int64] | None = None) -> None:
        self.partitioner, self.table, self.rows = partitioner, table, rows
        self.__name__ = type(partitioner).__name__

    def on(self, table: Any, rows: npt.NDArray[np.int64]) -> Partitioned:
        """The same partition of these rows of a table."""
        return Partitioned(self.partitioner, table, rows)

    def __call__(self, labels: Any, clients: int, seed: int) -> list[npt.NDArray[np.int64]]:
        """The indices of each client's examples. Raises UserError."""
        numbers = list(range(len(labels)))
        if self.table is None:
            table = _table({**{name: np.asarray(labels).tolist() for name in PLAIN}, NUMBER: numbers})
        else:
            table = self.table.with_format(None).select(self.rows).add_column(NUMBER, numbers)
        partitioner = copy.deepcopy(self.partitioner)  # a data set can be assigned once
        name = self.__name__
        try:
            partitioner.dataset = table
            many = int(partitioner.num_partitions)
            if many != clients:
                raise UserError(f"clients={clients}: partition {name} makes {many} partitions: clients={many}")
            return [np.array(partitioner.load_partition(client)[NUMBER], np.int64) for client in range(clients)]
        except UserError:
            raise
        except Exception as raised:  # the partitioner is a stranger's code
            if "only once" in str(raised) or "already" in str(raised):
                raise UserError(f"partition {name} has a data set already: give a new one, and the data as data=") from None
            said = " ".join(str(raised).split())[:300]
            raise UserError(f"partition {name} raised {type(raised).__name__}: {said}") from raised


def _table(columns: Mapping[str, Any]) -> Any:
    try:
        from datasets import Dataset
    except ModuleNotFoundError:
        raise UserError("a partitioner needs Hugging Face's datasets: pip install 'shoal[datasets]'") from None
    return Dataset.from_dict(dict(columns))
