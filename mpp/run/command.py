"""How a command ends: exit code 0, or 2 with one line that says what is wrong."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mpp.errors import SaidByTheFirst, UserError, first_line, for_terminal


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run a command's `main` and end the process as a user expects: 0, or 2 with one line on stderr, which names the
    rank where there are several. What is nobody's fault but ours keeps its traceback and exit code 1."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    where = f" (rank {os.environ.get('RANK')} of {processes})" if processes > 1 else ""
    threading.excepthook = _leave_to_the_main_thread
    try:
        main()
    except SaidByTheFirst:
        _end(2, processes)
    except Exception as error:
        try:
            line = str(error) if isinstance(error, UserError) else loss_of_a_process(error) or lack_of_memory(error)
        except RuntimeError as late:  # PyTorch raises out of SIGCHLD, whatever is running, when a reading process dies
            line = loss_of_a_process(late)
        says = for_terminal(f"error{where}: {line or type(error).__name__}", sys.stderr)
        print(says, file=sys.stderr, flush=True)
        if line is None:
            raise
        _end(2, processes)
    except KeyboardInterrupt:  # Ctrl-C twice
        print(f"ended at once{where}", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for threads and readers, as a shell reports what Ctrl-C ended
    _end(0, processes)


def _end(code: int, processes: int) -> NoReturn:
    """End the process. One of several ends without taking the interpreter down: gloo's threads may still let go of
    tensors, which needs the interpreter, and would abort a process whose work is done (pytorch #179291)."""
    if processes > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            time.sleep(1)  # the launcher ends the others when the first leaves: each has time to say its own line
        os._exit(code)
    sys.exit(code)


def _leave_to_the_main_thread(raised: threading.ExceptHookArgs) -> None:
    """Threads that write (TensorBoard's) hand a full disk on to whoever next has something to write: once will do."""
    if not isinstance(raised.exc_value, OSError):
        threading.__excepthook__(raised)


def lack_of_memory(error: Exception) -> str | None:
    """What to say if memory was too short for the model itself, whatever was being done; None if it was not that."""
    from mpp.run.memory import is_out_of_memory  # heavy imports come after --help

    if not is_out_of_memory(error):
        return None
    return f"out of memory ({first_line(error)[:200]}); a smaller model, image size or batch needs less"


def loss_of_a_process(error: Exception) -> str | None:
    """What to say if an error comes of another process that has died, of whatever command; None if not."""
    text = " ".join(str(error).split())
    while_receiving = any("resource_sharer" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    if "DataLoader worker (pid" in text or while_receiving:
        return (
            f"a process that reads images has died ({text[:200] or type(error).__name__}); the system ends them where "
            f"memory is short: fewer --data.workers need less; --resume goes on from the last checkpoint"
        )
    if (isinstance(error, RuntimeError) and "gloo" in text) or type(error).__name__ in (
        "DistBackendError",
        "DistNetworkError",
        "DistStoreError",
    ):
        return (
            f"another process of this run has died or does not answer ({text[:200]}); its own message says why; "
            f"--resume goes on from the last checkpoint"
        )
    return None


def spelled(name: str) -> str:
    """How this user calls a command, from any folder: `mpp NAME` if that started this one, else by the launcher."""
    started = Path(sys.argv[0])
    if started.name == "mpp" or started.parts[-2:] == ("mpp", "__main__.py"):
        return f"mpp {name}"
    return f"accelerate launch -m mpp {name}"


def quoted(path: str | Path) -> str:
    """A path as a command line takes it from any folder."""
    return shlex.quote(os.path.abspath(path))
