"""A mypy plugin that records which attribute of which class is read in which file: `class.attribute<tab>file`, a line each.

mypy knows the type of what stands before the dot, so an attribute of the same name of another class is another line.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mypy.plugin import AttributeContext, Plugin
from mypy.types import Type


class Reads(Plugin):
    """Record, and leave every type as it is."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        if not (fullname.startswith("sgpipe.") and re.search(r"\.(config|params|kinds)\.", fullname)):
            return None

        def seen(context: AttributeContext) -> Type:
            with Path(os.environ["ATTRIBUTE_READS"]).open("a") as stream:
                stream.write(f"{fullname}\t{context.api.path}\n")  # type: ignore[attr-defined]
            return context.default_attr_type

        return seen


def plugin(version: str) -> type[Plugin]:
    """What mypy calls."""
    return Reads
