"""What the runs of a chapter share: the model, the facts and context prefixes of each seed, text and store."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pandas as pd
import torch
from pydantic import Field

from editkit.cache import Store
from editkit.config import Parameters, Seed
from editkit.editing.spec import EditSpec, default_layers
from editkit.facts import SOURCES, Fact, Part, data_hash
from editkit.facts.fact import fold
from editkit.language.domain import EditSession
from editkit.language.drift import PIECES, PROBE_TOKENS
from editkit.language.keys import sample_contexts
from editkit.language.known import known_facts, load_facts
from editkit.language.texts import load_texts
from editkit.methods import METHODS
from editkit.models import LanguageModel, load_lm
from editkit.models.quantized import Quantization

TUNE, TUNE_SEED = 256, 1  # facts at most on which promises are held, and the order in which they are taken

if TYPE_CHECKING:  # what pydantic checks is made from the table, which no type checker reads
    SourceName = str
else:
    SourceName = Literal[*SOURCES]


class SettingParams(Parameters):
    """The model, the facts and the text of a run."""

    model: str = "smollm2-135m"
    """Language model: a known name, a hub id or a local folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the language model's weights."""
    quantization: Quantization = "none"
    """Bits of its weights that no edit touches: none, int8 (package torchao) or nf4 (4 bits, package bitsandbytes)."""
    facts_source: SourceName = "worldfacts"
    """Facts of every chapter: built from installed packages, or a published file."""
    facts_path: str = ""
    """Path or URL of that file; empty for worldfacts."""
    facts_part: Part = "test"
    """Part of the facts, by a hash of the subject: test for what is reported, tune for choosing hyperparameters."""
    known_only: bool = True
    """Edit only facts that the model completes correctly before; of worldfacts alone, files are taken as they are."""
    fluency_facts: Annotated[int, Field(ge=0)] = 0
    """First facts of each seed whose generation prompts are written on for GE in every table; 0 leaves it out."""
    said_facts: Annotated[int, Field(ge=0)] = 0
    """First facts of each seed whose prompts are answered freely for ESaid, PSaid and NSaid in every table; 0: none."""
    text_path: str = ""
    """Text behind the second moment: "wikipedia", "python-reference", a .txt or .jsonl file; empty: the model's own."""
    text_seed: Seed = 0
    """Draws that text at random over its source."""
    hyperparameters: dict[str, Any] = {
        "v_num_grad_steps": 3,
        "n_contexts": 1,
        "context_length": 4,
        "mom2_n_tokens": 2000,
    }
    """Overrides of the model's default hyperparameters, for every method."""

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of :func:`editkit.load_lm`, besides the name."""
        edited = self.hyperparameters.get("layers") or default_layers(self.model) or None
        how = {"device": self.device, "dtype": self.dtype, "quantization": self.quantization}
        return how | ({"float_layers": edited} if self.quantization != "none" else {})


class Draw(NamedTuple):
    """The facts of one seed."""

    facts: list[Fact]  # to edit
    heldout: list[Fact]  # never edited
    tried: int  # facts looked at to find them


@dataclass(frozen=True)
class Setting:
    """What all runs of a study share."""

    lm: LanguageModel
    dataset: str  # name of the facts' source in the results
    draws: Mapping[int, Draw]  # by seed
    contexts: Mapping[int, Sequence[str]]  # prefixes by seed
    texts: Sequence[str]  # behind the second moment
    hyperparameters: Mapping[str, Any]  # common to every spec
    store: Store
    progress: bool = True
    draw_tune: Callable[[], Sequence[Fact]] = tuple  # see tunable
    fluency_facts: int = 0  # of a seed, the first, whose generation prompts are written on
    said_facts: int = 0  # of a seed, the first, whose prompts are answered freely
    drawn: Mapping[int, Sequence[Fact]] = field(default_factory=dict)  # by seed, where facts arrive in another order

    @classmethod
    def prepare(
        cls,
        params: SettingParams,
        *,
        n_facts: int,
        seeds: Iterable[int],
        heldout: int = 0,
        store: Store | None = None,
        progress: bool = True,
        **common: Any,
    ) -> "Setting":
        """Load model and text, draw the facts of each seed and sample its context prefixes.

        Args:
            n_facts: facts to edit per seed.
            seeds: each draws other prefixes, and other facts while there are enough, else a warning says how many
                they share; 0 keeps the source's own order.
            heldout: further facts per seed, which follow those to edit.
            common: hyperparameters of every spec, besides ``params.hyperparameters``.

        Raises ``ValueError`` where the part of a source has too few facts.
        """
        lm = load_lm(params.model, **params.loading)
        hyperparameters = params.hyperparameters | common
        spec = EditSpec(method="memit", **hyperparameters).resolve(lm)  # the prefixes do not depend on the method
        store = store or Store()
        enough = spec.mom2_n_tokens + PIECES * PROBE_TOKENS
        text: dict[str, Any] = {"lm": lm, "n_tokens": enough, "seed": params.text_seed, "progress": progress}
        draws = {seed: _draw(lm, params, n_facts, heldout, seed) for seed in seeds}
        _warn_of_shared(draws)
        return cls(
            lm,
            params.facts_source,
            draws,
            {seed: sample_contexts(lm, spec.n_contexts, spec.context_length, seed) for seed in draws},
            load_texts(params.text_path, store=store, **text),
            hyperparameters,
            store,
            progress,
            partial(_draw_tune, params, draws),
            params.fluency_facts,
            params.said_facts,
        )

    def spec(self, method: str, **changes: Any) -> EditSpec:
        """Specify a method in this setting, with ``changes``; the model's defaults are not yet filled in.

        What a method asks for to be itself stands above what is common to all, and below ``changes``.
        """
        own = METHODS[method].asks if method in METHODS else {}  # EditSpec tells of an unknown one
        return EditSpec(method=method, **{**self.hyperparameters, **own, **changes})

    def session(self, spec: EditSpec, seed: int) -> EditSession:
        """Start a session with the prefixes and held-out facts of a seed, those for tuning where it makes a promise."""
        heldout = self.draws[seed].heldout if spec.neighbour_budget is None else self.tune
        given: dict[str, Any] = {"texts": self.texts, "contexts": self.contexts[seed], "heldout": heldout}
        return EditSession(self.lm, spec, **given, store=self.store, progress=False)

    def first(self, n_facts: int) -> "Setting":
        """Take the first facts to edit of each seed; those held out stay the same."""
        draws = {seed: draw._replace(facts=draw.facts[:n_facts]) for seed, draw in self.draws.items()}
        return replace(self, draws=draws)

    @cached_property
    def tunable(self) -> Sequence[Fact]:
        """All facts of the part for tuning whose subject no seed draws."""
        return self.draw_tune()

    @cached_property
    def tune(self) -> Sequence[Fact]:
        """Facts on which promises are held, of all seeds: of the part for tuning, and of no subject that is drawn."""
        return self.tunable[:TUNE]

    @property
    def hashes(self) -> dict[int, str]:
        """Hashes of the facts to edit, by seed."""
        return {seed: data_hash(draw.facts) for seed, draw in self.draws.items()}

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def summary(self) -> pd.DataFrame:
        """Tabulate the facts taken, held out and looked at, and the hash of those to edit, a row a seed.

        "shared" counts the facts, taken or held out, that another seed takes or holds out too.
        """
        shared = _shared(self.draws)
        rows = [
            (self.dataset, seed, len(draw.facts), len(draw.heldout), shared[seed], draw.tried, self.hashes[seed][:12])
            for seed, draw in self.draws.items()
        ]
        columns = ["dataset", "seed", "facts", "held out", "shared", "looked at", "hash of the facts"]
        return pd.DataFrame(rows, columns=columns)


def _shared(draws: Mapping[int, Draw]) -> dict[int, int]:
    """Count the facts of each seed that another seed has too."""
    drawn = {seed: {fact.id for fact in (*draw.facts, *draw.heldout)} for seed, draw in draws.items()}
    seeds_of = Counter(chain.from_iterable(drawn.values()))
    return {seed: sum(seeds_of[name] > 1 for name in names) for seed, names in drawn.items()}


def _warn_of_shared(draws: Mapping[int, Draw]) -> None:
    if any(shared := _shared(draws).values()):
        total = sum(len(draw.facts) + len(draw.heldout) for draw in draws.values())
        warnings.warn(
            f"seeds {', '.join(map(str, draws))} are not independent: {sum(shared)} of their {total} facts are drawn "
            "by more than one of them; there are too few facts for so many seeds",
            stacklevel=3,
        )


def _draw(lm: LanguageModel, params: SettingParams, n_facts: int, heldout: int, seed: int) -> Draw:
    wanted = n_facts + heldout
    found = load_facts(params.facts_source, path=params.facts_path or None, seed=seed, part=params.facts_part)
    if params.known_only and params.facts_source == "worldfacts":
        facts, tried = known_facts(lm, found, wanted)
    else:
        facts, tried = found[:wanted], wanted
    if len(facts) < wanted:
        known = " that the model knows" * (len(found) > len(facts))
        raise ValueError(
            f"{n_facts} facts and {heldout} held out are asked for: {params.facts_source} has {len(facts)}{known} "
            f"(facts_part: {params.facts_part})"
        )
    return Draw(facts[:n_facts], facts[n_facts:], tried)


def _draw_tune(params: SettingParams, draws: Mapping[int, Draw]) -> list[Fact]:
    drawn = {fold(fact.subject) for draw in draws.values() for fact in (*draw.facts, *draw.heldout)}
    found = load_facts(params.facts_source, path=params.facts_path or None, seed=TUNE_SEED, part="tune")
    return [fact for fact in found if fold(fact.subject) not in drawn]
