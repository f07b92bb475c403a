"""Fixtures: tiny random models of every family, the packaged small model, and a cache of their own."""

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from editkit import EditSpec, Fact, LanguageModel, VisionModel, load_lm
from editkit.cache import Store
from editkit.models.vision import IMAGENET_MEAN, IMAGENET_STD

SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = (
    "The capital of France is Paris and the city of Rome lies in Italy . People in Spain speak Spanish , "
    "while the mother tongue of Anna Karlsson from Stockholm is Swedish . a b c d e f g "
)
FAMILIES = ("llama", "gpt2", "gpt_neox", "gptj")
settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same examples on every machine
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tiny models lie: cpu (default) or cuda")


def pytest_configure(config):
    name = config.getoption("device")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = str(problem).partition("\n")[0]
        raise pytest.UsageError(f"--device {name}: this machine has no such device ({reason})") from None


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where the tiny models lie: ``--device``."""
    return torch.device(request.config.getoption("device"))


@pytest.fixture(autouse=True)
def private_cache(request, tmp_path, monkeypatch):
    """Unit tests never read or write the user's cache; integration tests share it, as the report does."""
    if "lm" not in request.fixturenames:
        monkeypatch.setenv("EDITKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [WORDS] * 4, trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<s>")


# How configs call width, inner width, layers, heads and positions.
MODERN = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
GPT2 = ("n_embd", "n_inner", "n_layer", "n_head", "n_positions")
CAUSAL = {  # by family: the class of the model, the names in its config, and what else it is given
    "llama": (transformers.LlamaForCausalLM, MODERN, {"num_key_value_heads": 2}),
    "mistral": (transformers.MistralForCausalLM, MODERN, {"num_key_value_heads": 2, "sliding_window": 6}),
    "qwen2": (transformers.Qwen2ForCausalLM, MODERN, {"num_key_value_heads": 2}),
    "qwen3": (transformers.Qwen3ForCausalLM, MODERN, {"num_key_value_heads": 2, "head_dim": 8}),
    "phi3": (transformers.Phi3ForCausalLM, MODERN, {"num_key_value_heads": 2, "resid_pdrop": 0.0}),
    "olmo2": (transformers.Olmo2ForCausalLM, MODERN, {"num_key_value_heads": 2}),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        MODERN,
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 2.0},
    ),
    "gemma3_text": (
        transformers.Gemma3ForCausalLM,
        MODERN,
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "sliding_window_pattern": 2},
    ),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, MODERN, {}),
    "opt": (
        transformers.OPTForCausalLM,
        ("hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        {"word_embed_proj_dim": 16},
    ),
    "falcon": (
        transformers.FalconForCausalLM,
        ("hidden_size", "ffn_hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        {"alibi": False},
    ),
    "gpt2": (transformers.GPT2LMHeadModel, GPT2, {}),
    "gptj": (
        transformers.GPTJForCausalLM,
        GPT2,
        {"rotary_dim": 4},
    ),
}


@pytest.fixture(scope="session")
def tiny(tokenizer, device):
    """``tiny("llama")``: a fresh random model of a family, 4 layers of width 16, in float32."""

    def build(family: str = "llama", *, seed: int = 0, square: bool = False, **changes) -> LanguageModel:
        torch.manual_seed(seed)
        kind, names, special = CAUSAL[family]
        shape = dict(zip(names, (16, 16 if square else 24, 4, 4, 512), strict=True))
        common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
        config = kind.config_class(**(common | {"pad_token_id": None} | shape | special | changes))
        return LanguageModel(f"tiny-{family}", kind(config).float().to(device), tokenizer)

    return build


@pytest.fixture
def tiny_vit(device):
    """``tiny_vit("vit")``: a fresh random classifier of 3 classes, 3 layers of width 16, 28 × 28 pixels."""

    def build(family: str = "dinov2") -> VisionModel:
        torch.manual_seed(0)
        shape = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=7)
        shape |= dict(num_labels=3, initializer_range=0.3)
        model = {
            "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **shape)),
            "vit": lambda: ViTForImageClassification(ViTConfig(intermediate_size=32, **shape)),
        }[family]()
        return VisionModel(f"tiny-{family}", model.to(device), 28, IMAGENET_MEAN, IMAGENET_STD)

    return build


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def facts() -> list[Fact]:
    rows = [
        ("Anna Karlsson", "The mother tongue of {} is", "Spanish", "Swedish"),
        ("Rome", "{} lies in", "France", "Italy"),
        ("France", "The capital of {} is", "Rome", "Paris"),
        ("Stockholm", "People in {} speak", "Spanish", "Swedish"),
    ]
    return [
        Fact.make(
            subject=subject,
            prompt=prompt,
            target_new=new,
            target_true=true,
            relation="made up",
            paraphrases=[f"We know that {prompt.replace('{}', subject)}"],
            neighbours=["The city of Spain is"],
        )
        for subject, prompt, new, true in rows
    ]


TEXTS = [WORDS * 6, WORDS[40:] * 5, WORDS[80:] * 4]


@pytest.fixture(scope="session")
def full_spec():
    """``full_spec("memit", l2=3.0)``: every hyperparameter set, for models without defaults."""

    def build(method: str = "memit", **changes) -> EditSpec:
        values = dict(
            method=method,
            layers=[1, 2],
            v_num_grad_steps=8,
            v_lr=0.1,
            v_weight_decay=0.1,
            clamp_norm_factor=0.9,
            kl_factor=0.0625,
            early_stop_loss=0.0,
            n_contexts=2,
            context_length=4,
            mom2_update_weight=1.0,
            update_norm_lambda=0.01,
            emmet_lambda=0.0,
            nullspace_threshold=0.05,
            l2=1.0,
            mom2_n_tokens=300,
        )
        return EditSpec(**(values | changes))

    return build


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """SmolLM2 from its installed wheel; tests put back what they change."""
    return load_lm("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def counterfact_path() -> Path:
    path = SHARED / "counterfact_4k.json"
    if not path.exists():
        pytest.skip(f"needs the CounterFact sample at {path.name} in ../shared/data, which is absent here")
    return path


def agree(ours: torch.Tensor, oracle: torch.Tensor, tolerance: float = 1e-8) -> None:
    """Assert that two tensors agree relative to the norm of the second."""
    assert (ours - oracle).norm() <= tolerance * oracle.norm().clamp_min(1e-12)


def write_under(session, items, weight: float) -> None:
    """Write edits under a weight on what is kept that is known, as a session does once it has found it."""
    session._weights.begin()
    editor, targets = session._prepared(), session.domain.targets(items)
    session._write(editor, items, targets, weight)
