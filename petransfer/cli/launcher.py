"""`--processes N`: start the command in N processes with Accelerate's launcher."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from typing import Any

from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError

# Values of `distributed_type` in an Accelerate configuration that already determine how processes are started.
_OWN_LAUNCH = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


def launch(processes: int) -> int:
    """Start this command in several processes, wait for them, and return one exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the leading process has already reported the error
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
    """Return options for Accelerate's launcher that respect the user's `accelerate config`."""
    kept = _configuration()
    options = ["--num_processes", str(processes)]
    if kept is None or not any(name in str(kept.distributed_type) for name in _OWN_LAUNCH):
        options.append("--multi_gpu")  # the launcher for several processes, also on a CPU
    if kept is None:
        options += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    if getattr(kept, "main_process_port", None) is None:
        options += ["--main_process_port", "0"]  # any free port, so that two commands can run at the same time
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
    """Return one exit code for several processes."""
    own = [code for code in codes if code > 0]  # the codes of processes that were not killed
    if own:
        return max(own, key=own.count)
    killed = signal.Signals(-codes[0]).name if codes and codes[0] < 0 else "the launcher"
    print_text(f"error: a process was ended by {killed}; run the same command again to resume", file=sys.stderr)
    return 1
