"""`python -m automodel_cli` is `amcli`."""

from automodel_cli.app import main

if __name__ == "__main__":
    main()
