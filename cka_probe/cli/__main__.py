"""`python -m cka_probe.cli`, which is what `accelerate launch -m` needs."""

from . import main

if __name__ == "__main__":
    main()
