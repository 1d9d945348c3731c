"""What a paper claims of an experiment that is a script: the claims in a sentence, and the file that holds them."""

import json
from pathlib import Path
from typing import Any


def verdict(claims: dict[str, bool]) -> str:
    """The claims in a sentence."""
    holds = [words for words, true in claims.items() if true]
    fails = [words for words, true in claims.items() if not true]
    return "; ".join(
        ([f"Holds: {', '.join(holds)}"] if holds else []) + ([f"does not: {', '.join(fails)}"] if fails else [])
    )


def write_result(path: Path, value: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".new-{path.name}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
