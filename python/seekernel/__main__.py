"""python -m seekernel: the command line."""

from seekernel.cli.main import main

if __name__ == "__main__":
    main()
