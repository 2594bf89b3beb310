"""Example commands in the `--help` of each verb."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "petransfer train google/flan-t5-large pairs.csv --bits 4",
        "petransfer train nano/english rows.jsonl --input-column question --target-column answer",
        "petransfer train google-t5/t5-base pairs.tsv --plan",
    ),
    "run": (
        "petransfer run smoke",
        "petransfer run lora-scan --seeds 0-5 --workers 2",
        "petransfer run my.yaml --set train.steps=500 --out results/short",
    ),
    "sweep": (
        "petransfer sweep lora-scan --factors 0.5,1,2",
        "petransfer sweep lora-scan --learning-rates 1e-3,3e-3 --steps 1000",
    ),
    "plan": ("petransfer plan lora-scan", "petransfer plan lora-cogs-t5-base --card 12GB"),
    "status": ("petransfer status results/lora-scan",),
    "fit": (
        "petransfer fit google-t5/t5-3b --bits 4 --card 12GB",
        'petransfer fit google-t5/t5-11b --bits 4 --card "RTX 3060"',
        "petransfer fit google/flan-t5-large --method full --card 24GB",
    ),
    "report": ("petransfer report results/lora-scan", "petransfer report compare results/a results/b"),
    "predict": (
        'petransfer predict results/pairs-english "to walk"',
        "petransfer predict user/name --file inputs.txt",
    ),
    "eval": ("petransfer eval results/pairs-english --data test.csv",),
    "serve": ("petransfer serve results/pairs-english --port 8000",),
    "adapter push": ("petransfer adapter push results/pairs-english user/name",),
    "adapter pull": ("petransfer adapter pull user/name",),
    "adapter merge": ("petransfer adapter merge results/pairs-english merged",),
    "adapter compare": ("petransfer adapter compare merged merged.gguf --data test.csv",),
    "adapter verify": ("petransfer adapter verify user/name",),
    "pretrain": ("petransfer pretrain --recipe nano --arms english,code",),
    "doctor": ("petransfer doctor",),
    "recipes": ("petransfer recipes cp lora-scan my.yaml",),
    "recipes show": ("petransfer recipes show lora-scan",),
    "recipes cp": ("petransfer recipes cp lora-scan my.yaml",),
    "checkpoints ls": ("petransfer checkpoints ls",),
}


def epilog(command: str) -> str:
    """Return the examples at the end of a command's help. Empty if there are none."""
    lines = EXAMPLES.get(command, ())
    return "\n\n".join((f"Example{'s' if len(lines) > 1 else ''}:", *lines)) if lines else ""
