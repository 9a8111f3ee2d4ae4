"""`python -m mechm`: the `mechm` command where its script is not on the path."""

from mechm.cli import main

if __name__ == "__main__":
    main()
