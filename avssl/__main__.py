"""``python -m avssl`` is the command ``avssl``; torchrun starts it this way."""

from avssl.cli.main import main

if __name__ == "__main__":
    main()
