"""`python -m cka_probe.cli`, for `accelerate launch -m`."""

from . import main

if __name__ == "__main__":
    main()
