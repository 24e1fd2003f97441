"""`python -m cka_probe.cli`, which is what `accelerate launch -m` needs."""

from . import main

main()
