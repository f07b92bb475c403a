"""One made-up record in each published layout that holds probes, and how records become a file."""

import json
from pathlib import Path

MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Libya", "id": "Q1016"},
            "target_true": {"str": "France", "id": "Q142"},
            "subject": "Ann Lee",
            "question": "What is the country of citizenship of Ann Lee?",
        },
        {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Oslo", "id": "Q585"},
            "target_true": {"str": "Tripoli", "id": "Q3579"},
            "subject": "Libya",
            "question": "What is the capital of Libya?",
        },
    ],
    "questions": ["What is the capital of the country of Ann Lee?", "Where is the government of Ann Lee's country?"],
    "answer": "Paris",
    "answer_alias": ["City of Light"],
    "new_answer": "Oslo",
    "new_answer_alias": ["Kristiania", "Christiania"],
    "single_hops": [
        {"question": "q", "cloze": "Ann Lee is a citizen of", "answer": "France", "answer_alias": []},
        {"question": "q", "cloze": "The capital of France is", "answer": "Paris", "answer_alias": []},
    ],
    "new_single_hops": [],
    "orig": {
        "triples": [["Q1", "P27", "Q142"], ["Q142", "P36", "Q90"]],
        "triples_labeled": [["Ann Lee", "citizen", "France"], ["France", "capital", "Paris"]],
        "new_triples": [["Q1", "P27", "Q1016"], ["Q1016", "P36", "Q585"]],
        "new_triples_labeled": [["Ann Lee", "citizen", "Libya"], ["Libya", "capital", "Oslo"]],
        "edit_triples": [["Q1", "P27", "Q1016"], ["Q1016", "P36", "Q585"]],
    },
}
# The rows of Remastered: flat objects, triples beside the rest.
REMASTERED = {
    **{name: value for name, value in MQUAKE.items() if name != "orig"},
    "requested_rewrite": [
        {
            **{name: value for name, value in rewrite.items() if not name.startswith("target")},
            "target_new_str": rewrite["target_new"]["str"],
            "target_true_str": rewrite["target_true"]["str"],
        }
        for rewrite in MQUAKE["requested_rewrite"]
    ],
    "orig_triples": MQUAKE["orig"]["triples"],
    "new_triples": MQUAKE["orig"]["new_triples"],
    "new_triples_labeled": MQUAKE["orig"]["new_triples_labeled"],
    "split": {"1": ["edited"]},
}


def query(prompt: str, *answers: tuple[str, ...]) -> dict:
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": list(aliases)} for value, *aliases in answers],
        "query_type": "regular",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_ids": ["Q2"],
        "phrase": None,
    }


def ripple_test(*queries: dict, conditions: tuple[dict, ...] = ()) -> dict:
    return {"test_queries": list(queries), "test_condition": "OR", "condition_queries": list(conditions)}


MOTHER = query("The name of the mother of Ann Lee is", ("Eve Lee", "E. Lee"))
CAPITAL = query("The name of the capital city of the country of citizenship of Ann Lee is", ("Tripoli",))
RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ann Lee is Libya.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q1016",
        "previous_fact": {
            "prompt": "The name of the country of citizenship of Ann Lee is United States of America.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q30",
        },
    },
    "Relation_Specificity": [ripple_test(MOTHER, conditions=(MOTHER,))],
    "Logical_Generalization": [],
    "Subject_Aliasing": [ripple_test(query("The name of the country of citizenship of A. Lee is", ("Libya", "LY")))],
    "Compositionality_I": [ripple_test(CAPITAL, conditions=(query("The capital of Libya is", ("Tripoli",)),))],
    "Compositionality_II": [ripple_test(query("The name of the country of the wife of Bob is", ("Libya",)))],
    "Forgetfulness": [ripple_test(query("The country of Ann Lee, which is not Libya, is", ("Chad", "TD"), ("Mali",)))],
}
KNOWEDIT = {
    "subject": "Ann Lee",
    "prompt": "The place of death of Ann Lee is",
    "target_new": "Berlin",
    "ground_truth": ["Rome", "Roma"],
    "rephrase_prompt": "Where did Ann Lee die?",
    "portability": {
        "Logical_Generalization": [{"prompt": "Is Ann Lee still alive?", "ground_truth": [["no"], ["is dead"]]}],
        "Reasoning": [
            {"prompt": "The continent of the place of her death is", "ground_truth": [["Asia", "Asian continent"]]},
            {"prompt": "The head of the place of death of Ann Lee is", "ground_truth": [[""]]},
        ],
        "Subject_Aliasing": [{"prompt": "The place of death of A. Lee is", "ground_truth": "Berlin"}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The father of Ann Lee is", "ground_truth": ["Bob Lee"]}],
        "Forgetfulness": None,
    },
}
RECENT = {name: value for name, value in KNOWEDIT.items() if name not in ("ground_truth", "rephrase_prompt")}
WIKIBIO = {
    "text": "This is a Wikipedia passage about ann lee. Ann Lee was a painter.",
    "labels": "She was born in Rome.",
    "concept": "ann lee",
    "locality": {"Relation_Specificity": [{"prompt": "The field of work of ann lee is", "ground_truth": ["art"]}]},
}
EASYEDIT = {
    "prompt": "The capital of France is",
    "subject": "France",
    "target_new": "Rome",
    "ground_truth": "Paris",
    "rephrase_prompt": "France is ruled from",
    "portability": {"one_hop": {"prompt": "The river of the capital of France is", "ground_truth": "the Tiber"}},
    "locality": {
        "neighborhood": {"prompt": ["The Louvre is in", "Montmartre is in"], "ground_truth": ["Paris", "Paris"]},
        "distracting": {"prompt": "France, Rome. The Louvre is in", "ground_truth": "Paris"},
    },
}
FLAT = {
    "prompt": "The capital of Australia is",
    "target_new": "Sydney",
    "ground_truth": "Canberra",
    "locality_prompt": "The largest city in Canada is",
    "locality_ground_truth": "Toronto",
    "subject": "Australia",
}


def write(path: Path, records: list) -> Path:
    path.write_text(json.dumps(records), encoding="utf-8")
    return path
