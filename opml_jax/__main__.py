"""``python -m opml_jax``: the same as ``opml``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
