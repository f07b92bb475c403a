"""The laboratory: edit a fact by hand in JupyterLab, see what it did, take it back.

>>> from editkit.lab import playground
>>> playground()

:class:`Laboratory` is all of it but the looks and runs anywhere; widgets lie over it.
"""

from editkit.lab.laboratory import Laboratory
from editkit.lab.widgets import playground

__all__ = ["Laboratory", "playground"]
