"""Defaults of data sets, which are files outside of runs."""

from typing import Literal

Compression = Literal["none", "snappy", "gzip", "zstd"]
# Of the parts of a data set (`run/part_folder.py`), by default.
PART_ROWS = 2000
COMPRESSION: Compression = "zstd"
# Most rows of a data set that training holds in memory, by default. A row of 12 digits takes half a kilobyte.
WINDOW_ROWS = 2**17
