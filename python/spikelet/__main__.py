"""`python -m spikelet` is the command `spikelet`."""

from spikelet.cli import main

raise SystemExit(main())
