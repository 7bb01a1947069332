"""The command `avssl`: finds its subcommands and turns errors into one line.

Nothing heavy is imported here: a subcommand is loaded when it is called, so that ``avssl --help`` is instant.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

import click

from avssl import __version__
from avssl.errors import AvsslError


@dataclass(frozen=True)
class LazyCommand:
    """Where a subcommand is (``module:attribute``) and what the overview says about it."""

    target: str
    help: str


COMMANDS = {
    "prepare": LazyCommand(
        "avssl.cli.prepare:prepare", "Measure videos: a manifest, or small copies in shards."
    ),
    "datasets": LazyCommand(
        "avssl.cli.datasets:datasets", "Known data sets: check a copy and make its manifest."
    ),
    "statistics": LazyCommand(
        "avssl.cli.statistics:statistics", "Mean and std of each spectrogram bin, from your data."
    ),
    "pretrain": LazyCommand("avssl.cli.pretrain:pretrain", "Train encoders without labels."),
    "launch": LazyCommand("avssl.cli.launch:launch", "Train as a job: on SLURM, or here in the background."),
    "runs": LazyCommand("avssl.cli.runs:runs", "List runs and how far they are; compare some."),
    "report": LazyCommand("avssl.cli.report:report", "Write the page of a run, also while it trains."),
    "evaluate": LazyCommand(
        "avssl.cli.evaluate:evaluate", "Measure a checkpoint: kNN, linear probe, retrieval."
    ),
    "evaluate-features": LazyCommand(
        "avssl.cli.evaluate_features:evaluate_features", "Measure retrieval between two files of features."
    ),
    "weights": LazyCommand(
        "avssl.cli.weights:weights", "Describe or convert a checkpoint; list published ones."
    ),
    "demo": LazyCommand("avssl.cli.demo:demo", "Run everything on a small generated data set, no GPU."),
    "doctor": LazyCommand("avssl.cli.doctor:doctor", "Check this installation: decoders, search, GPU."),
}


class Failure(click.ClickException):
    """An error the user can act on: each of its lines as ``avssl: error: ...``, status 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print to standard error."""
        for line in self.message.splitlines() or [""]:
            click.echo(f"avssl: error: {line}", file=file, err=True)


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called.

    Parameters
    ----------
    lazy : dict of str to LazyCommand
        Subcommands in the order the overview lists them.
    """

    def __init__(self, *args: Any, lazy: dict[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run under the name ``avssl`` however it was started; see `click.Command.main`."""
        kwargs["prog_name"] = kwargs.get("prog_name") or "avssl"
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order they were given."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand; None if there is none of this name."""
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.lazy.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; answer an unknown one with the nearest."""
        name = args[0]
        if name not in self.lazy and not name.startswith("-"):
            close = difflib.get_close_matches(name.lower(), self.lazy, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"Choose one of {', '.join(self.lazy)}."
            ctx.fail(f"No such command '{name}'. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; errors on purpose become one line, other errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except AvsslError as error:
            raise Failure(str(error)) from error
        except OSError as error:
            if error.filename is None:  # a closed pipe, say, which click knows how to treat
                raise
            message = f"{error.filename}: {error.strerror}; check the path, its permissions and the disk"
            raise Failure(message) from error
        except (KeyboardInterrupt, click.Abort):
            click.echo("\navssl: interrupted", err=True)
            ctx.exit(130)


@click.command(
    "avssl",
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  avssl doctor
  avssl prepare videos/ --output manifest.parquet
  avssl pretrain configs/avid/folder.yaml data.manifest=manifest.parquet
  avssl evaluate runs/avid
""",
)
@click.version_option(__version__, prog_name="avssl", message="%(prog)s %(version)s")
def main() -> None:
    """Learn from the sight and sound of unlabelled video, and measure what was learnt.

    'avssl COMMAND --help' explains a command.
    """
