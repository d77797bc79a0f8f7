"""Parquet files."""

from collections.abc import Iterator
from pathlib import Path

from twinpass.errors import DataError
from twinpass.task.rows import Item, Row
from twinpass.task.sources.hub import filled

BATCH = 256


def read_file(path: Path) -> Iterator[Item]:
    """The rows of a file, some at a time."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{path}: Parquet files are read by pyarrow; pip install pyarrow") from error
    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(filled(fields), f"{path}, row {number}")
    except ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from error
