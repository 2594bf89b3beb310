"""Start the command line with `python -m petransfer`."""

from petransfer.cli import main

if __name__ == "__main__":
    main()
