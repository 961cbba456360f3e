"""Command line of sector. Importing it installs a handler that ends Ctrl-C with one line instead of a traceback."""

from sector.cli._signals import leave_on_interrupt

leave_on_interrupt()
