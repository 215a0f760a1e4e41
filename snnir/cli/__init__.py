"""The `snnir` command. Thin: each command reads its input, calls one function and prints.

Exit codes: 0 done, 1 a check failed, 2 the input is wrong, 130 interrupted. Imports are inside the
commands, so that `check` and `fmt` answer without loading torch.
"""

from __future__ import annotations

import os
import sys

from snnir.cli import (  # noqa: F401  (their commands register with the app)
    importing,
    networks,
    report,
    search,
    training,
)
from snnir.cli.app import app
from snnir.errors import CheckFailed, SnnirError


def main() -> None:
    """Run the command line; turns errors into exit codes."""
    try:
        app(prog_name="snnir")
    except CheckFailed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except SnnirError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
