"""The laboratory: edit a fact or an image by hand in JupyterLab, see what it did, take it back; look through a run.

>>> from editkit.lab import explorer, playground
>>> playground()
>>> explorer("reports/quick")

:class:`Laboratory`, :class:`Images` and :class:`RunTables` are all of it but the looks and run anywhere; widgets lie
over them.
"""

from editkit.lab.images import Images
from editkit.lab.laboratory import Laboratory
from editkit.lab.run_widgets import explorer
from editkit.lab.runs import RunTables
from editkit.lab.widgets import playground

__all__ = ["Images", "Laboratory", "RunTables", "explorer", "playground"]
