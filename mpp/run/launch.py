"""`mpp NAME --processes N`: several processes on this machine, by Accelerate's launcher, without its own messages."""

from __future__ import annotations

import logging
import os

from mpp.errors import UserError


def processes_asked_for(words: list[str]) -> tuple[int, list[str]]:
    """--processes of a command line (1 without it), and the line without it. Raises UserError if it is no count."""
    rest, found = [], "1"
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--processes=") else [word])]
    for number, word in enumerate(words):
        if number and words[number - 1] == "--processes":
            found = word
        elif word != "--processes":
            rest.append(word)
    if not (found.isdecimal() and int(found)) or words[-1:] == ["--processes"]:
        raise UserError(f"--processes {'' if words[-1:] == ['--processes'] else found} must be a number above 0")
    if int(found) > 1 and "WORLD_SIZE" in os.environ:
        raise UserError(f"--processes {found}: a launcher has started this process already; leave the option out")
    return int(found), rest


def launched(processes: int, words: list[str]) -> int:
    """Run `mpp WORDS` on several processes of this machine; returns the exit code, 0 if all ended well."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.run", "torch.distributed.elastic"):  # the processes say what is wrong themselves
        logging.getLogger(name).setLevel(logging.CRITICAL)
    given = {"num_processes": processes, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    port = ["--main_process_port", "0"]  # a free one
    line = ["--multi_gpu", *options, *port, "-m", "mpp", *words]
    try:
        launch_command(launch_command_parser().parse_args(line))
    except ChildFailedError as error:
        return int(error.get_first_failure()[1].exitcode) or 1
    except SignalException:  # which the processes have got, too
        return 0
    return 0
