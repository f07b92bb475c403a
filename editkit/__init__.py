"""editkit: closed-form model editing, measured.

>>> import editkit as ek
>>> lm = ek.load_lm("smollm2-135m")
>>> facts = ek.load_facts("worldfacts", n=32, seed=1)
>>> session = ek.EditSession(lm, ek.EditSpec(method="emmet"))
>>> result = session.edit(facts)
>>> ek.summarize(ek.evaluate(lm, facts))
>>> session.undo()
"""

from editkit.config import METHODS, EditSpec, RunParams
from editkit.editing.adapters import AdapterStack
from editkit.editing.result import EditResult
from editkit.facts import Fact, load_facts
from editkit.language.generation import complete
from editkit.language.metrics import evaluate, summarize
from editkit.language.session import EditSession
from editkit.models import LanguageModel, VisionModel, load_lm, load_vit
from editkit.texts import load_texts
from editkit.vision.data import load_images

__all__ = [
    "METHODS",
    "AdapterStack",
    "EditResult",
    "EditSession",
    "EditSpec",
    "Fact",
    "LanguageModel",
    "RunParams",
    "VisionModel",
    "complete",
    "evaluate",
    "load_facts",
    "load_images",
    "load_lm",
    "load_texts",
    "load_vit",
    "summarize",
]
__version__ = "0.1.0"
