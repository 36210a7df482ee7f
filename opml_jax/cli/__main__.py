"""``python -m opml_jax.cli``: the same as ``opml``."""

from .main import main

raise SystemExit(main())
