"""What loading takes of the host's memory: shards are read tensor by tensor, so about one of them and not the model.

A load is measured in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petransfer.bench.memory import HostMemory


@dataclass(frozen=True)
class Loading:
    """Bytes. stored: of all shards. shard: of the largest. weights: as loaded, scales and all.

    before: the process's own memory with its libraries, before the load. host: at most, while it loaded (None where the
    system does not say). on_host: whether the weights themselves stay in the host's memory, as they do on a CPU.
    """

    bits: int
    stored: int
    shard: int
    weights: int
    before: int | None
    host: int | None
    on_host: bool
    seconds: float

    @property
    def beside(self) -> int | None:
        """What was held beside the weights at the peak."""
        if self.host is None or self.before is None:
            return None
        return self.host - self.before - (self.weights if self.on_host else 0)


def measure(folder: Path, bits: int) -> Loading:
    """Loads the checkpoint in a new process.

    Raises:
        RuntimeError: it could not be loaded; the last line of what was said.
    """
    command = [sys.executable, "-m", "petransfer.bench.loading", str(folder), str(bits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"loading failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
    return Loading(**json.loads(done.stdout.strip().splitlines()[-1]))


def _here(folder: Path, bits: Any) -> Loading:
    import torch

    from petransfer.checkpoints.load import load
    from petransfer.checkpoints.quantise import inventory
    from petransfer.checkpoints.registry import checkpoint_spec

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load(checkpoint_spec("nano/english"), bits, device=device)  # libraries are no part of what a load takes
    with HostMemory() as idle:
        time.sleep(0.2)
    started = time.monotonic()
    with HostMemory() as host:
        model = load(checkpoint_spec(str(folder)), bits, device=device).model
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    weights = inventory(model).total
    seconds = round(time.monotonic() - started, 1)
    return Loading(bits, sum(sizes), max(sizes), weights, idle.most, host.most, device == "cpu", seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(_here(Path(sys.argv[1]), int(sys.argv[2])))))
