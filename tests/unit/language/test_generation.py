"""What a model says when nobody forces its tokens."""

import pandas as pd

from editkit.language.generation import pick_examples


def test_examples_are_taken_in_turn_from_successes_and_failures():
    frame = pd.DataFrame(
        {
            "kind": ["rewrite"] * 6 + ["neighbourhood"] * 2,
            "accuracy": [True] * 5 + [False, True, False],
            "prompt": range(8),
        }
    )
    chosen = pick_examples(frame, 4)
    assert sorted(zip(chosen.kind, chosen.accuracy, strict=True)) == [
        ("neighbourhood", False), ("neighbourhood", True), ("rewrite", False), ("rewrite", True),
    ]  # fmt: skip
