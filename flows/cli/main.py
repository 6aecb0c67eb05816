"""The `mav` command: its families of commands in one application, and the exit codes of its errors."""

import io
import os
import re
import sys
import tempfile
import traceback
from typing import Annotated, Any, NoReturn

import typer

from flows.cli import clean, demo_world, describe, diff, evaluate, generate, plan, publish, recipes, run, status, study
from flows.services.environment import configure_environment
from flows.services.help_pages import Command, Group
from flows.services.printing import say
from mav import release
from mav.errors import UserError, nearest, refuse_secret
from mav.secrets import redacted

BROKEN_PIPE = 141  # the shell's exit code of a command whose output nobody reads any more
RESUMED = {"run", "rerun", "evaluate", "sample", "animate", "interpolate", "vary"}  # what goes on after Ctrl-C
INTERRUPTED = 130  # the shell's exit code of a command that Ctrl-C ended

app = typer.Typer(
    cls=Group, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Make-A-Video as a system: from image-text tables and unlabelled video to a text-to-video model.\n\n"
    "A RECIPE is a shipped name or a YAML file, of which `--set KEY=VALUE` overrides any value. Exit codes: 0 done, 1 "
    "a check found something, 2 something to correct, 130 stopped by Ctrl-C.",
    epilog="mav run demo && mav report demo",
)  # fmt: skip

PANELS = {  # every command with an example, in the groups and the order that help shows
    "Build": {
        "run": "mav run my.yaml --until image-download --runs s3://bucket/runs",
        "rerun": "mav rerun demo train-prior --downstream",
        "clean": "mav clean demo --delete",
    },
    "Look": {
        "status": "mav status demo --json",
        "report": "mav report demo",
        "verify": "mav verify demo --quick",
        "diff": "mav diff demo my.yaml",
        "sweep": "mav sweep demo video_select.too_fast=1,2,4",
    },
    "Foresee": {
        "validate": "mav validate my.yaml --json",
        "schema": "mav schema > recipe.schema.json",
        "plan": "mav plan paper --rate fetched=400",
        "describe": "mav describe single-gpu --fit 80GB",
    },
    "Use the networks": {
        "sample": 'mav sample demo "a red circle moves to the left" --count 4',
        "animate": "mav animate demo picture.png",
        "interpolate": "mav interpolate demo first.png last.png",
        "vary": "mav vary demo clip.mp4 --seed 7",
        "publish": "mav publish demo --to someone/make-a-video-demo",
    },
    "Measure": {
        "evaluate": "mav evaluate ucf101 --videos DIR --real UCF --weights-dir DIR",
        "study freeze": "mav study freeze --system ours=DIR --system theirs=DIR --prompts FILE --out STUDY",
        "study serve": "mav study serve STUDY --raters 12",
        "study report": "mav study report STUDY --json",
    },
    "Serve": {"serve-demo-world": "mav serve-demo-world demo"},
}  # fmt: skip


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__)


_FAMILIES = (run, clean, status, diff, recipes, generate, evaluate, describe, plan, publish, demo_world)
_STUDY = {f"study {_name(command)}": command for command in study.app.registered_commands}
_COMMANDS = {_name(command): command for family in _FAMILIES for command in family.app.registered_commands} | _STUDY


def _add_commands() -> None:
    """Adds every command to the application, in the panels' order, with its example below its help."""
    for panel, examples in PANELS.items():
        for name, example in examples.items():
            command = _COMMANDS[name]
            command.cls, command.rich_help_panel, command.epilog = Command, panel, example
            if name in _STUDY:
                command.rich_help_panel = None
            else:
                app.registered_commands.append(command)
    example = PANELS["Measure"]["study freeze"]
    app.add_typer(study.app, name="study", cls=Group, rich_help_panel="Measure", epilog=example)


_add_commands()


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mav {release()}")
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unforeseen error.")] = False,
    version: Annotated[bool, _VERSION] = False,
) -> None:
    """Takes the options that stand before a command; `main` reads them."""


def main() -> None:
    """Runs the command. An error, foreseen or not, is one sentence and exit 2; `--debug` adds its traceback."""
    debug = "--debug" in sys.argv[1:]
    sys.argv = [word for word in sys.argv if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding does not have ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        for word in sys.argv[1:]:
            refuse_secret(word, f"The argument {word}")
        configure_environment()
        code = app(prog_name="mav", standalone_mode=False) or 0  # the code of a typer.Exit is the returned value
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except UserError as error:
        say(f"mav: {' '.join(str(error).split())}", sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # typer takes it for the end of a dialogue; readers raise it too
            _unforeseen(stop.__cause__, debug)
        # After `mav rerun`, the same command would begin again instead of going on.
        command = "`mav run` of this recipe" if sys.argv[1:2] == ["rerun"] else "the same command"
        goes_on = f"; {command} goes on where it was" if {*sys.argv[1:2]} & RESUMED else ""
        say(f"mav: stopped{goes_on}.", sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # an argument or an option
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message(), file=sys.stderr)
            else:
                say(f"mav: {_usage(error)}", sys.stderr)
            sys.exit(2)
        if isinstance(error, BrokenPipeError):  # the reader of our output, `head` for example, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        _unforeseen(error, debug)


def _unforeseen(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    where = "" if debug else _record(error)
    say(f"mav: {' '.join(redacted(_sentence(error)).split())}{where}", sys.stderr)
    sys.exit(2)


def _usage(error: Any) -> str:
    """Returns one sentence on an argument, option or command that is wrong, with where to look."""
    context = getattr(error, "ctx", None)  # the parser of options has none
    command = context.command_path if context else " ".join(["mav", *sys.argv[1:2]])
    if option := getattr(error, "option_name", ""):
        told, meant = error.message, nearest(option, getattr(error, "possibilities", None) or ())
    else:
        told, _, guesses = " ".join(error.format_message().split()).partition(" Did you mean ")
        word, *known = re.findall("'([^']*)'", f"{told.partition(' command ')[2]} {guesses}") if guesses else [""]
        meant = nearest(word, known)
    guess = f" (did you mean {meant}?)" if meant else ""
    return f"{told.rstrip('.')}{guess}: see `{command} --help`."


def _sentence(error: BaseException) -> str:
    """Returns what is wrong and the remedy, for an error that no part of the program foresaw."""
    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename or "A file"
        remedy = "check that the place is there, may be written and has space, or name another one"
        return f"{path} cannot be used ({error.strerror.lower()}): {remedy}."
    last = (str(error).strip().splitlines() or [""])[-1]  # Ray's errors end with the cause
    return f"an unforeseen error ended this ({type(error).__name__}: {last}): run it again, and report it if it stays."


def _record(error: BaseException) -> str:
    """Writes the traceback to a file and returns where it is."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="mav-", suffix=".txt", delete=False) as file:
            file.write(redacted("".join(traceback.format_exception(error))))
    except OSError:  # no room for it
        return " --debug shows its traceback."
    return f" Its traceback is in {file.name}."


if __name__ == "__main__":
    main()
