"""Command line. One file a command; a command imports what it needs when it runs."""

from .main import main as main
