"""The command line. From its first import on, Ctrl-C is one line and no traceback."""

from sector.cli._signals import hush

hush()
