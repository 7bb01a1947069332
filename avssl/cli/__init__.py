"""The command line: one file a command; `avssl.cli.main` finds them."""
