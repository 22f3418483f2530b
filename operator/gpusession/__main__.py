"""`python -m gpusession`."""

from gpusession.cli import main

if __name__ == "__main__":
    main()
