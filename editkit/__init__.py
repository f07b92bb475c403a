"""editkit: closed-form model editing, measured.

>>> import editkit as ek
>>> lm = ek.load_lm("smollm2-135m")
>>> facts = ek.load_facts("worldfacts", n=32, seed=1)
>>> session = ek.EditSession(lm, ek.EditSpec(method="emmet"))
>>> result = session.edit(facts)
>>> ek.summarize(ek.evaluate(lm, facts))
>>> session.undo()
"""

from editkit.editing.adapters import AdapterStack
from editkit.editing.result import EditResult
from editkit.editing.spec import EditSpec
from editkit.facts import Fact, read_probes
from editkit.language.domain import EditSession
from editkit.language.generation import complete
from editkit.language.known import load_facts
from editkit.language.metrics import evaluate, summarize
from editkit.language.probes import evaluate_probes, known_probes, summarize_probes
from editkit.language.texts import load_texts
from editkit.methods import METHODS
from editkit.models import LanguageModel, VisionModel, load_lm, load_vit
from editkit.studies.params import RunParams
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
    "evaluate_probes",
    "known_probes",
    "load_facts",
    "load_images",
    "load_lm",
    "load_texts",
    "load_vit",
    "read_probes",
    "summarize",
    "summarize_probes",
]
__version__ = "0.1.0"
