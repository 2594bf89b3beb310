"""`python -m petransfer` is `petransfer`."""

from petransfer.cli import main

if __name__ == "__main__":
    main()
