"""Describe an adapter of petransfer or of another program from its files."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from petransfer.errors import UserError
from petransfer.sharing import file_checks as checks
from petransfer.sharing.bundle import Bundle, differences
from petransfer.sharing.bundle_files import CARD
from petransfer.sharing.safe_reading import card_data, read_text


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the known properties of an adapter by name, for display and for JSON."""
    config = bundle.config
    dtypes = Counter(dtype for dtype, _ in bundle.tensors.values())
    targets = config.get("target_modules")
    rows = config.get("trainable_token_indices")
    card = card_data(read_text(bundle.files[CARD])) if CARD in bundle.files else {}
    stored, trained = sum(prod(shape) for _, shape in bundle.tensors.values()), _trained(bundle)
    found: dict[str, Any] = {
        "adapter": bundle.label,
        "hub commit": bundle.commit,
        "method": config.get("peft_type"),
        "base": config.get("base_model_name_or_path"),
        "base revision": config.get("revision"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "targets": ", ".join(map(str, targets)) if isinstance(targets, list) else targets,
        "rows of embeddings": _rows(rows) if rows else None,
        "tensors": len(bundle.tensors),
        "parameters": trained or stored,
        "stored parameters": stored if trained not in (None, stored) else None,
        "dtypes": ", ".join(f"{dtype} ({count})" for dtype, count in sorted(dtypes.items())),
        "megabytes": round(bundle.weights.stat().st_size / 1e6, 2),
        "licence": card.get("license"),
        "sound": _sound(bundle),
    }
    return {name: value for name, value in (found | _made(bundle)).items() if value is not None}


def _trained(bundle: Bundle) -> int | None:
    """Return the number of trained parameters in result.json. None if not recorded."""
    # The adapter's file can contain more parameters: PiSSA is saved as a LoRA of twice the rank, and VeRA is saved
    # together with its frozen projections.
    found = (bundle.result() or {}).get("trained_parameters")
    return found if isinstance(found, int) else None


def _rows(rows: Any) -> int | str:
    lists = list(rows.values()) if isinstance(rows, dict) else [rows]
    return sum(map(len, lists)) if all(isinstance(one, list) for one in lists) else str(rows)[:40]


def _sound(bundle: Bundle) -> str:
    """Return whether the files of an adapter are consistent, as text. After `no: `, the text names the problem."""
    try:
        checks.check(bundle.config, bundle.tensors, bundle.method)
    except UserError as error:
        return f"no: {error}"
    wrong = differences(bundle)
    if wrong:
        return f"no: {next(iter(wrong.values()))}"
    return "tensors fit the configuration" + ("; files are as written after training" if bundle.provenance else "")


def _made(bundle: Bundle) -> dict[str, Any]:
    if bundle.spec is None or bundle.provenance is None:
        return {"made by": "not petransfer: there is no petransfer.json"}
    spec, claims = bundle.spec, bundle.provenance.get("claims", {})
    return {
        "made by": f"petransfer, run {spec.run_id}",
        "task": f"{spec.task.name} {spec.task.split}",
        "bits": spec.method.bits,
        "seed": spec.seed,
        **{f"claimed {part} EM %": round(claim["exact_match"], 2) for part, claim in claims.items()},
    }
