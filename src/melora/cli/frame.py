"""What every command shares: where output goes, what libraries may say, and how errors end."""

import argparse
import importlib
import logging
import sys
import time
import traceback
import warnings

from rich.console import Console

from ..errors import MeloraError
from ..training.ranks import is_main, is_shared, leave, rank, world_size

_LET_MAIN_SPEAK = 10.0  # seconds


def run_command(args: argparse.Namespace, rest: list[str]) -> int:
    """Run the command that was parsed.

    Args:
        args: what the parser found; `command` and `debug` at least.
        rest: arguments that the parser left to the command itself (bench).

    Returns:
        The exit code: 2 for bad input, 1 for a failure, otherwise the command's own. KeyboardInterrupt passes.
    """
    console = make_console()
    with warnings.catch_warnings():
        _quieten(console, debug=args.debug)
        try:
            if world_size() > 1 and args.command != "train":
                raise MeloraError(f"melora {args.command}: runs in one process; start it without accelerate launch")
            module = "import_" if args.command == "import" else args.command  # import is a word of Python's own
            command = importlib.import_module(f".{module}", __package__)
            code = int(command.run(args, rest) if args.command == "bench" else command.run(args, console))
            leave()
            return code
        except MeloraError as error:
            return _fail(f"error: {error}", 2, args.debug, told_by_main=True)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("melora"):
                return _fail(f"error: {error}", 1, args.debug)
            return _fail(
                f"error: {error.name} is not installed; run `pip install 'melora[train]'`, which has all that the "
                f"command {args.command} needs",
                1,
                args.debug,
            )
        except Exception as error:
            kind = type(error).__name__
            plain = kind in ("TrainingError", "RankError")
            text = f"error: {error}" if plain else f"error: {kind}: {error}"
            text = text if args.debug else f"{text} (--debug shows where)"
            return _fail(text, 1, args.debug, told_by_main=is_shared(error))


def make_console() -> Console:
    """Standard output: a terminal in colour, or plain unwrapped lines; of several ranks only the main one prints."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=True, width=None if terminal else 200, quiet=not is_main())


def _fail(text: str, code: int, debug: bool, *, told_by_main: bool = False) -> int:
    if debug:
        traceback.print_exc()
    if told_by_main and not is_main():
        # The launcher ends all ranks as soon as one has ended; this one's end must not come before the message.
        time.sleep(_LET_MAIN_SPEAK)
        return code
    who = "" if is_main() else f"rank {rank()}: "
    print(who + " ".join(text.split()), file=sys.stderr)
    return code


def _quieten(console: Console, *, debug: bool) -> None:
    """Libraries speak only with --debug; melora's own notes and warnings are always shown, one line each."""
    logger = logging.getLogger("melora")
    logger.handlers = [_Lines(console)]
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)
    logger.propagate = False
    if debug:
        return
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if is_main():
        warnings.filterwarnings("default", module=r"melora\.")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)


class _Lines(logging.Handler):
    """Notes to standard output, warnings to standard error."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if record.levelno >= logging.WARNING:
            print(f"{record.levelname.lower()}: {text}", file=sys.stderr)
        else:
            self.console.print(text, markup=False)
