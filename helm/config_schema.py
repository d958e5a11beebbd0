"""Writes into values.schema.json what each `config` may hold, from the classes that the services read it by.

Run it after a change of these classes. A misspelt key, or a value of the wrong kind, then fails at template time with
its name, and not at the start of a pod. What is required is left out: the chart brings it, or the service says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trimtab_services.generation.config import GenerationConfig
from trimtab_services.labeling.config import LabelingServiceConfig
from trimtab_services.reward.config import RewardConfig
from trimtab_services.runtime.config import FrozenModelConfig, ServiceConfig
from trimtab_services.trainer.config import TrainerServiceConfig
from trimtab_services.weights.config import WeightsServiceConfig

__all__ = ["CLASSES", "schema_with_configs"]

SCHEMA = Path(__file__).parent / "trimtab" / "values.schema.json"
CLASSES: dict[str, type[BaseModel]] = {
    "common": ServiceConfig,
    "weights": WeightsServiceConfig,
    "generation": GenerationConfig,
    "reward": RewardConfig,
    "reference": FrozenModelConfig,
    "trainer": TrainerServiceConfig,
    "labeling": LabelingServiceConfig,
}
"""Which class reads the `config` of each section of the values; in `common` stands what all services share."""

_PREFIX = "config."
_LEFT_OUT = {"title", "default", "required", "discriminator", "writeOnly"}


def schema_with_configs(text: str) -> str:
    """A values.schema.json whose sections' `config` is what `CLASSES` say.

    Raises:
        ValueError: two classes of one name differ.
    """
    schema = json.loads(text)
    definitions = {name: one for name, one in schema["$defs"].items() if not name.startswith(_PREFIX)}
    for section, config in CLASSES.items():
        own = config.model_json_schema()
        for name, definition in {**own.pop("$defs", {}), config.__name__: own}.items():
            name = f"{_PREFIX}{name}"
            definition = _adapted(definition)
            if definitions.setdefault(name, definition) != definition:
                raise ValueError(f"{name}: two classes have this name")
        schema["properties"][section]["properties"]["config"] = {"$ref": f"#/$defs/{_PREFIX}{config.__name__}"}
    schema["$defs"] = definitions
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _adapted(node: Any) -> Any:
    """A part of pydantic's schema, for values: nothing is required, and without its keys alternatives may be alike."""
    if isinstance(node, list):
        return [_adapted(one) for one in node]
    if not isinstance(node, dict):
        return node
    adapted: dict[str, Any] = {}
    for key, one in node.items():
        if key in ("properties", "$defs"):
            adapted[key] = {name: _adapted(its) for name, its in one.items()}
        elif key == "$ref":
            adapted[key] = f"#/$defs/{_PREFIX}{one.rpartition('/')[2]}"
        elif key == "oneOf":
            adapted["anyOf"] = _adapted(one)
        elif key not in _LEFT_OUT:
            adapted[key] = _adapted(one)
    return adapted


def main() -> int:
    """Rewrites the schema."""
    SCHEMA.write_text(schema_with_configs(SCHEMA.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
