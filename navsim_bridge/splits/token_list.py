"""Splits as lists of tokens: CSV or Parquet files with a column `token`, such as the devkit's score files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpvla.files import open_regular, read_text, short

SUFFIXES = (".csv", ".parquet")
COLUMNS = ("token", "log_name", "data_split")
"""The columns that are read; the first must be there."""
MOST_BYTES, MOST_ROWS, ROWS_AT_ONCE = 1 << 25, 10**7, 1 << 10
"""navtrain, the longest list that there is, has 103,288 tokens in 2 MB."""
SUMMARY_ROWS = ("average", "extended_pdm_score", "pseudo_closed_loop")
"""Rows of the devkit's score files whose token begins so are not scenes."""


class TokenListError(ValueError):
    """A list that cannot be used; the message says which file and row and what to do."""


def read_token_list(path: Path) -> dict[str, tuple[str, ...]]:
    """Values of the `COLUMNS` that the file has, one per scene, summary rows left out.

    Raises:
        TokenListError: not readable as what the name says, no column `token`, an empty or repeated token, no scene,
            or Parquet without pyarrow.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if "token" not in columns:
        raise TokenListError(f"{path}: no column 'token'; it has {', '.join(map(str, columns))[:200] or 'none'}")
    rows = [i for i, token in enumerate(columns["token"]) if not str(token).startswith(SUMMARY_ROWS)]
    if not rows:
        raise TokenListError(f"{path} lists no scene")
    found: dict[str, tuple[str, ...]] = {}
    for name in COLUMNS:
        if name in columns:
            values = columns[name]
            bad = [i for i in rows if not isinstance(values[i], str) or not values[i].strip()]
            if bad:
                found_there = short(values[bad[0]])
                raise TokenListError(f"{path}: row {bad[0] + 1}: {name}: expected a text, found {found_there}")
            found[name] = tuple(values[i].strip() for i in rows)
    seen: set[str] = set()
    for token in found["token"]:
        if token in seen:
            raise TokenListError(f"{path}: token {token:.80} is listed twice")
        seen.add(token)
    return found


def _csv(path: Path) -> Mapping[str, Sequence[Any]]:
    text = read_text(path, MOST_BYTES).removeprefix("\ufeff")
    try:  # texts: 12345678e9012345 is a token, not a number
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = reader.fieldnames or ()
        rows = list(reader)
    except csv.Error as error:
        raise TokenListError(f"{path}: not a readable CSV file ({error}); is a quote left open?") from None
    _refuse_twice(path, names)
    return {name: [row[name] for row in rows] for name in names}


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    for name in COLUMNS:
        if names.count(name) > 1:
            raise TokenListError(f"{path}: the column {name} stands twice")


def _parquet(path: Path) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise TokenListError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow); or give a CSV") from None
    with open_regular(path, MOST_BYTES) as content:
        try:
            file = parquet.ParquetFile(content)
            names = [name for name in file.schema_arrow.names if name in COLUMNS]
            _refuse_twice(path, names)
            if file.metadata.num_rows > MOST_ROWS:
                raise TokenListError(f"{path}: {file.metadata.num_rows} rows; no split has more than {MOST_ROWS}")
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):  # a few bytes may stand for many
                for name in names:
                    columns[name] += batch.column(name).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
            raise TokenListError(f"{path}: not a readable Parquet file ({short(str(error))})") from None
    return columns
