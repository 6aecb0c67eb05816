"""The pages of `--help`: plain text that fits any terminal, with every option whole and an example."""

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup

from flows.services.printing import wrapped

TERMS = 26  # columns for the names of arguments, options and commands, at most
TEXT = 40  # columns that the words beside a name have at least
WIDEST = 100  # columns: longer lines are tiring to read
Section = tuple[str, list[tuple[str, str]]]  # its title, and its terms with what they mean


class Command(TyperCommand):
    """A command whose help is a plain page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page."""
        formatter.write(page(self, ctx, _parameters(self, ctx)))


class Group(TyperGroup):
    """A group of commands whose help is a plain page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the page, with the commands under the names of their panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            about = (command.help or "").partition("\n\n")[0] if command else ""
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, about))
        formatter.write(page(self, ctx, [*panels.items(), *_parameters(self, ctx)]))


def page(command: Any, ctx: Any, sections: list[Section]) -> str:
    """Returns a page: how the command is called, what it does, and the sections in the width of the terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)
    width = min(console.width, WIDEST)

    # What it is and how it is called.
    lines = [Text(line) for line in wrapped(_usage(command, ctx), width, "Usage: ", "  ")]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines += [Text(), *map(Text, wrapped(paragraph, width))]
    if command.epilog:
        parts = wrapped(command.epilog, width - len(" \\"), "  ", "    ")
        lines += [Text(), Text("Example", "bold"), Text(" \\\n".join(parts))]

    # Names on the left and what they mean on the right, or below where that is too narrow.
    column = min(TERMS, max((len(term) for _, rows in sections for term, _ in rows), default=0)) + 4
    for title, rows in sections:
        lines += [Text(), Text(title, "bold")]
        for term, about in rows:
            if width < column + TEXT or len(term) + 4 > column:  # the term has a line of its own
                lines += [Text(f"  {term}", "cyan"), *map(Text, wrapped(about, width, "      ", "      "))]
            else:
                first, *more = wrapped(about, width, f"  {term:<{column - 2}}", " " * column)
                lines += [Text(first), *map(Text, more)]
                lines[-1 - len(more)].stylize("cyan", 2, 2 + len(term))
    with console.capture() as captured:
        console.print(Text("\n").join(lines), soft_wrap=True)
    return captured.get().rstrip("\n")


def _usage(command: Any, ctx: Any) -> str:
    """Returns how a command is called: its arguments and the options that it needs."""
    words = [ctx.command_path]
    for parameter in command.get_params(ctx):
        name = _name(parameter)
        if isinstance(parameter, TyperArgument):
            name += "..." if parameter.nargs != 1 else ""
            words.append(name if parameter.required else f"[{name}]")
        elif parameter.required:
            words.append(name)
    return " ".join([*words, *(["COMMAND"] if isinstance(command, TyperGroup) else []), "[OPTIONS]"])


def _parameters(command: Any, ctx: Any) -> list[Section]:
    """Returns the sections of the arguments and of the options."""
    shown = [parameter for parameter in command.get_params(ctx) if not getattr(parameter, "hidden", False)]
    parts: list[Section] = [
        (title, [(_name(parameter), " ".join(_about(parameter, ctx))) for parameter in shown if kind(parameter)])
        for title, kind in (
            ("Arguments", lambda parameter: isinstance(parameter, TyperArgument)),
            ("Options", lambda parameter: not isinstance(parameter, TyperArgument)),
        )
    ]
    return [part for part in parts if part[1]]


def _name(parameter: Any) -> str:
    if isinstance(parameter, TyperArgument):
        return str(parameter.metavar or parameter.name.upper())
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return ", ".join(parameter.opts) + value


def _about(parameter: Any, ctx: Any) -> Iterator[str]:
    """Yields what a parameter does, and its default."""
    yield parameter.help or ""
    default = None if parameter.required or parameter.is_eager else parameter.get_default(ctx)
    if default not in (None, "", False, [], ()) or (default == 0 and default is not False):
        yield f"Default: {default}."
