"""Failure signatures and the matcher: a build or boot log in, named failures with cause and remedies out.

:func:`explain_log` is its one face; the knowledge is data, one TOML file per failure, in ``knowledge/``.
"""

from klto.explain.explain import explain_file, explain_log
from klto.explain.model import Explanation, Explanations, LogLine, Remedy
from klto.explain.stages import Stage

__all__ = ["Explanation", "Explanations", "LogLine", "Remedy", "Stage", "explain_file", "explain_log"]
