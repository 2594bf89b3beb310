"""Run the command line with `python -m petransfer`, which does the same as `petransfer`."""

from petransfer.cli import main

if __name__ == "__main__":
    main()
