"""Command line: ``python -m benchmarks --json FILE``."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil
import torch

from benchmarks import growth, ratios, searches, thousands
from editkit import EditSpec, Fact, LanguageModel, load_facts, load_lm, load_texts
from editkit.cache import Store, write_atomic
from editkit.language.keys import sample_contexts
from editkit.language.texts import REFERENCE, SAMPLES
from editkit.plain import to_json

RATIOS = ("targets", "statistics", "scoring", "solve", "batch")
GROWTH = ("searches", "tokens", "edits", "thousands", "batches", "layers", "widths")
TUNE = 64  # facts on which the rate of a gradient is chosen
SHARED = Path(__file__).parents[2] / "shared" / "data"
SAMPLE, PROSE = SHARED / "counterfact_4k.json", SHARED / "texts_5k.jsonl"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Timings, as ratios.")
    top.add_argument("--json", type=Path, help="write the figures there; parts that are not run now are kept")
    top.add_argument("--only", nargs="+", choices=RATIOS + GROWTH, default=list(RATIOS), help="parts to run")
    top.add_argument("--counterfact", type=Path, help="CounterFact file (default: the shared sample, else worldfacts)")
    top.add_argument("--text", type=Path, help="text file for 'tokens', a third kind (default: the shared one, if any)")
    top.add_argument("--repeats", type=int, default=3, help="of each measurement (default 3)")
    top.add_argument("--edits", type=int, default=32, help="edits in a batch (default 32)")
    largest = "largest batch of 'edits', 'searches' and 'thousands', which takes worldfacts (default 128)"
    top.add_argument("--edits-up-to", type=int, default=128, help=largest)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts asked for, print the table, write the file."""
    arguments = parser().parse_args(words)
    for name in ("repeats", "edits", "edits_up_to"):
        if getattr(arguments, name) < 1:
            print(f"error: --{name.replace('_', '-')} = {getattr(arguments, name)}: must be 1 or more", file=sys.stderr)
            return 2
    if arguments.edits < arguments.repeats:
        print(f"error: --edits = {arguments.edits}: must not be below --repeats = {arguments.repeats}", file=sys.stderr)
        return 2
    if "batch" in arguments.only and not {"targets", "scoring"} <= set(arguments.only):
        print("error: --only batch needs targets and scoring measured with it", file=sys.stderr)
        return 2
    path = arguments.counterfact or (SAMPLE if SAMPLE.exists() else None)
    source = "counterfact" if path else "worldfacts"
    lm = load_lm(device="cpu")
    texts = load_texts(lm=lm)
    specs = {
        mode: EditSpec(method="emmet", target_mode=mode, early_stop_loss=0.0).resolve(lm) for mode in ("exact", "fast")
    }
    spec = specs["exact"]
    contexts = sample_contexts(lm, spec.n_contexts, spec.context_length, spec.seed)
    largest = max(arguments.edits, arguments.edits_up_to)

    def most() -> list[Fact]:
        return load_facts(source, path=path, n=largest)

    facts = load_facts(source, path=path, n=arguments.edits)
    bench = growth.Bench(lm, contexts, texts, Store())
    part = {
        "targets": lambda: ratios.targets(lm, facts, specs, contexts, arguments.repeats),
        "statistics": lambda: ratios.statistics(lm, texts, arguments.repeats),
        "scoring": lambda: ratios.scoring(lm, facts, arguments.repeats),
        "solve": lambda: ratios.solve(arguments.repeats),
        "batch": lambda: ratios.batch(lm, facts, spec, contexts, texts, measured),
        "edits": lambda: growth.edits(bench, most()),
        "searches": lambda: searches.searches(bench, most(), load_facts(source, path=path, n=TUNE, part="tune")),
        "thousands": lambda: thousands.thousands(bench, load_facts("worldfacts", n=largest)),
        "tokens": lambda: growth.tokens(bench, facts, _kinds(lm, arguments.text)),
        "batches": lambda: growth.batches(bench, facts),
        "layers": lambda: growth.layers(bench, facts),
        "widths": growth.widths,
    }
    record = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    measured = record.setdefault("measurements", {})
    for name in [name for name in RATIOS + GROWTH if name in arguments.only]:
        print(f"{name} …", file=sys.stderr, flush=True)
        result = part[name]()
        if name in RATIOS:
            measured |= result
            for key in result:
                print(_line(key, measured[key]), flush=True)
        else:
            record.setdefault("growth", {})[name] = result
        record.setdefault("machine", {})[name] = _machine("worldfacts" if name == "thousands" else source)
        record["ratios"] = {key: value["ratio"] for key, value in measured.items()}
        if arguments.json:
            write_atomic(arguments.json, (to_json(record, indent=1) + "\n").encode())
    return 0


def _kinds(lm: LanguageModel, path: Path | None) -> dict[str, list[str]]:
    """Draw the kinds of text that 'tokens' compares: the model's own samples, the Python reference, a file of prose."""
    most = max(growth.MULTIPLES) * lm.d_k
    kinds = {source: load_texts(source, lm=lm, n_tokens=most) for source in (SAMPLES, REFERENCE)}
    path = path or (PROSE if PROSE.exists() else None)
    return kinds | ({path.stem: load_texts(str(path))} if path else {})


def _line(name: str, found: dict) -> str:
    spread = f"({found['lowest']:.1f} to {found['highest']:.1f})"
    return f"{name:16} {found['ratio']:7.1f} ×  {spread:18} {found['what']}"


def _machine(source: str) -> dict:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "facts": source,
    }


if __name__ == "__main__":
    sys.exit(main())
