"""What models that are rounded or spread are asked for."""

import torch

from editkit.language.forward.scoring import score

ITEMS = [("The capital of France is", ["Paris", "Rome and Stockholm in Sweden"]), ("Rome lies in", ["Italy", "a"])]


def logprobs(lm):
    return torch.tensor([found.logprob for found in sum(score(lm, ITEMS), [])])
