"""The JSON file with the results of a stage. It is rewritten after every record, so a killed stage loses no records."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

LIMIT = 16 * 2**20  # maximum size of the file in bytes


class Records:
    """A growing list of measurements in one JSON file.

    Args:
        path: The file. It holds `{"about": {...}, "records": [...]}`.
        about: Facts that hold for all records, such as the GPU and the library versions.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.rows: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._write()

    def add(self, **row: Any) -> None:
        """Append one record and write the file. The record also notes the seconds since the stage started."""
        self.rows.append({**row, "at_second": round(time.monotonic() - self._started, 1)})
        self._write()
        print(json.dumps(self.rows[-1]), flush=True)

    def _write(self) -> None:
        text = json.dumps({"about": self.about, "records": self.rows}, indent=1) + "\n"
        if len(text) > LIMIT:
            raise ValueError(f"{self.path} would have {len(text):,} bytes; at most {LIMIT:,} are brought back")
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path)


def machine() -> dict[str, Any]:
    """Return the names and versions of the GPU, its driver, the processor and the libraries."""
    import platform
    import shutil
    import subprocess
    from importlib import metadata

    import torch

    from benchmarks.sides import hardware

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {**hardware(device), "python": platform.python_version(), "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    for name in ("transformers", "peft", "accelerate", "bitsandbytes"):
        try:
            about[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            about[name] = None
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        about |= {"memory": card.total_memory, "capability": f"{card.major}.{card.minor}", "cuda": torch.version.cuda}
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            about["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return about
