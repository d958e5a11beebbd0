"""Public dataset formats: how their rows become ours, and ours theirs.

Every format is one module that knows its own form only; `canonical` is ours, `conversion` reads and writes files.
"""

from trimtab_trainer.data.formats.conversion import FORMATS, Conversion, export_file, import_file

__all__ = ["FORMATS", "Conversion", "export_file", "import_file"]
