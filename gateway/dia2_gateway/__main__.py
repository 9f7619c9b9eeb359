"""`python -m dia2_gateway` is the command `dia2-gateway`."""

from .cli import main

raise SystemExit(main())
