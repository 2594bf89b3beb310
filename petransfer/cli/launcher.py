"""`--processes N`: this command again, N times, by Accelerate's own launcher and configuration."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from typing import Any

from petransfer.errors import UserError

# What a launch of Accelerate's may be configured as that says by itself how processes are started.
_OWN_LAUNCH = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def launch(processes: int) -> int:
    """Starts this command line in `processes` processes and waits for them; the exit code, as of one process.

    Raises:
        UserError: Accelerate's configuration does not allow it.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the leading process has said what was wrong
    warnings.filterwarnings("ignore", module="accelerate|torch")
    arguments = [*_options(processes), "--module", "petransfer", *_without_processes(sys.argv[1:])]
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        return _code([failure.exitcode for failure in error.failures.values()])
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except (ValueError, ImportError, ConnectionError, AssertionError) as error:
        raise UserError(f"Accelerate cannot launch {processes} processes: {' '.join(str(error).split())}") from None
    return 0


def _options(processes: int) -> list[str]:
    """What the user's `accelerate config` leaves open; several machines, the port and the rest are taken from it."""
    kept = _configuration()
    options = ["--num_processes", str(processes)]
    if kept is None or not any(name in str(kept.distributed_type) for name in _OWN_LAUNCH):
        options.append("--multi_gpu")  # the launcher of several processes, on a CPU too
    if kept is None:
        options += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if getattr(kept, "main_process_port", None) is None:
        options += ["--main_process_port", "0"]  # any that is free, so that two launches do not meet
    return options


def _configuration() -> Any:
    from accelerate.commands.config import config_args

    try:
        return config_args.load_config_from_file(None)
    except FileNotFoundError:
        return None


def _without_processes(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--processes="):
            skip = False
        elif argument == "--processes":
            skip = True
        else:
            kept.append(argument)
    return kept


def _code(codes: list[int]) -> int:
    """One exit code for all: the processes' own, which they agree on, before that of those that were ended."""
    own = [code for code in codes if code > 0]
    if own:
        return max(own, key=own.count)
    killed = signal.Signals(-codes[0]).name if codes and codes[0] < 0 else "the launcher"
    print(f"error: a process was ended by {killed}; run the same command again to resume", file=sys.stderr)
    return 1
