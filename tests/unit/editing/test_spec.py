"""Specs: which defaults they take, and what does not fit a model."""

import math
from types import SimpleNamespace

import pytest

from editkit import METHODS, EditSpec
from editkit.editing import spec as spec_module
from editkit.editing.budget import BudgetSpec
from editkit.editing.spec import FAST_PROMPTS, FAST_STEPS, FAST_STOP, known_defaults, load_defaults, published_defaults


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [30]}, "layer 30 is out of range: smollm2-135m has layers 0 to 29"),
        ({"layers": [5, 4]}, "ascending"),
        ({"layers": [4, 4]}, "each once"),
        ({"v_loss_layer": 3}, "must not lie below layer 6"),
        ({"v_loss_layer": 30}, "out of range"),
    ],
)
def test_layers_are_checked_against_the_model(changes, message):
    with pytest.raises(ValueError, match=message):
        EditSpec(method="memit", **changes).resolve(
            SimpleNamespace(name="smollm2-135m", n_layers=30, d_k=1536, kind=None)
        )


def test_a_model_without_defaults_needs_every_value():
    with pytest.raises(ValueError, match="no default v_num_grad_steps, v_lr.*layers.*'unheard-of'.*smollm2-135m"):
        EditSpec(method="memit").resolve(SimpleNamespace(name="unheard-of", n_layers=12, d_k=64, kind=None))


@pytest.mark.parametrize("name", known_defaults())
@pytest.mark.parametrize("method", METHODS)
def test_every_default_is_complete_and_valid(name, method):
    model = SimpleNamespace(name=name, n_layers=48, d_k=1536, kind="vision-transformer")
    spec = EditSpec(method=method).resolve(model)
    assert {name for name, value in spec if value is None} == set(BudgetSpec.model_fields), "nobody promised anything"
    assert set(load_defaults(name)) <= {"shared", *METHODS}
    assert EditSpec(method=method, v_lr=0.123).resolve(model).v_lr == 0.123
    assert spec.mom2_n_tokens == 10 * 1536 and spec.stop_probability == load_defaults(name)["shared"].get(
        "stop_probability", 1.0
    )
    fast = EditSpec(method=method, target_mode="fast").resolve(model)
    assert fast.stop_probability == load_defaults(name)["shared"].get("stop_probability", FAST_STOP) and FAST_STOP < 1.0
    if not fast.most_probable_steps and spec.target_mode == "exact":
        assert (spec.prompts_per_step, fast.prompts_per_step) == (0, FAST_PROMPTS)
        assert fast.v_num_grad_steps == math.ceil(FAST_STEPS * spec.v_num_grad_steps)
    assert EditSpec(method=method, mom2_n_tokens=500).resolve(model).mom2_n_tokens == 500


def test_defaults_are_found_by_the_last_part_of_a_hub_id():
    assert load_defaults("EleutherAI/gpt-j-6B") == load_defaults("gpt-j-6b") != {}
    assert {"gpt2-xl", "gpt-j-6b", "llama-2-7b-hf", "meta-llama-3-8b", "smollm2-135m"} == set(known_defaults()) - {
        "vision-transformer"
    }


@pytest.mark.parametrize(("n_layers", "layer"), [(1, 0), (3, 2), (5, 3), (12, 8), (24, 16), (40, 26)])
def test_a_vision_transformer_is_edited_at_two_thirds_of_its_depth_where_nobody_says_where(n_layers, layer):
    model = SimpleNamespace(name="some-vit", n_layers=n_layers, d_k=64, kind="vision-transformer")
    assert EditSpec(method="emmet").resolve(model).layers == [layer]
    assert EditSpec(method="emmet", layers=[0]).resolve(model).layers == [0]


@pytest.mark.parametrize(("name", "margin"), [("gpt2-xl", math.inf), ("some-vit", 0.5)])
def test_only_targets_of_images_stop_at_a_margin_by_default(name, margin):
    model = SimpleNamespace(name=name, n_layers=48, d_k=64, kind="vision-transformer" if name == "some-vit" else None)
    assert EditSpec(method="emmet").resolve(model).stop_margin == margin
    assert EditSpec(method="emmet", stop_margin=3.0).resolve(model).stop_margin == 3.0


def test_only_what_was_promised_is_listed():
    assert EditSpec(method="emmet").promised == {}
    given = EditSpec(method="emmet", text_budget=0.9, kept_budget=1.0, neighbour_budget=0.95)
    assert given.promised == {"kept": 1.0, "neighbour": 0.95, "text": 0.9}


def written(folder, name: str, text: str):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def test_a_users_own_defaults_fill_gaps_where_one_works_and_set_others_aside_where_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published = load_defaults("gpt2-xl")
    for name in ("Mine", "gpt2-xl"):
        written(tmp_path / "hparams", name, "shared: {v_lr: 0.2}\n")
        written(tmp_path / "named", name, "shared: {v_lr: 0.3}\n")
    assert load_defaults("me/MINE") == {"shared": {"v_lr": 0.2}} and "mine" in known_defaults()
    (chapters := tmp_path / "notebooks").mkdir()
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(chapters)
        assert load_defaults("mine") == {"shared": {"v_lr": 0.2}}, "a chapter's kernel works beside that folder"
    assert load_defaults("gpt2-xl") == published, "a file that lies about changes nothing that is published"
    monkeypatch.setenv("EDITKIT_HPARAMS", str(tmp_path / "named"))
    assert load_defaults("mine") == load_defaults("openai-community/gpt2-xl") == {"shared": {"v_lr": 0.3}}
    assert load_defaults("gpt-j-6b") == published_defaults("gpt-j-6b") != {}
    assert published_defaults("gpt2-xl") == published and published_defaults("mine") == {}
    monkeypatch.setenv("EDITKIT_HPARAMS", str(tmp_path / "nowhere"))
    assert load_defaults("gpt2-xl") == published and load_defaults("mine") == {"shared": {"v_lr": 0.2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shared: {v_lr: [0.1", "mine.yaml is not YAML: "),
        ("- v_lr", "mine.yaml: sections of 'key: value' lines are needed; they are called shared, rome, memit"),
        ("v_lr: 0.1", "mine.yaml: sections of 'key: value' lines are needed"),
        ("", "mine.yaml: sections of 'key: value' lines are needed"),
        ("mend: {v_lr: 0.1}", "mine.yaml has a section 'mend': allowed are shared, rome, memit"),
    ],
)
def test_a_users_file_of_another_layout_is_refused_by_name(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "hparams", "mine", text)
    with pytest.raises(ValueError, match=message) as refused:
        load_defaults("mine")
    assert len(str(refused.value).splitlines()) == 1


def test_a_null_space_in_which_betaedit_is_alphaedit_is_refused(tiny, full_spec):
    lm = tiny()
    assert full_spec("alphaedit", nullspace="kept").resolve(lm).nullspace == "kept"
    with pytest.raises(ValueError, match="nullspace = 'kept': must be 'threshold' for betaedit, which would be alphae"):
        full_spec("betaedit", nullspace="kept").resolve(lm)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("memit", ("none", "exact", "current", 0)),
        ("alphaedit", ("hold", "exact", "current", 0)),
        ("memit_rls", ("hold", "exact", "base", 0)),
        ("ultraedit", ("none", "gradient", "current", 0)),
        ("encore", ("hold", "exact", "current", 2)),
        ("betaedit", ("hold", "exact", "current", 0)),
    ],
)
def test_a_method_brings_what_makes_it_that_method(full_spec, method, settings):
    model = SimpleNamespace(name="unheard-of", n_layers=4, d_k=24, kind=None)
    names = ("replay", "target_mode", "targets_from", "most_probable_steps")
    spec = full_spec(method).resolve(model)
    assert tuple(getattr(spec, name) for name in names) == settings and not spec.replay_refresh
    given = {"replay": "none", "target_mode": "fast", "targets_from": "base", "most_probable_steps": 7}
    spec = full_spec(method, **given).resolve(model)
    assert {name: getattr(spec, name) for name in names} == given, "who says otherwise gets it"


def test_what_makes_a_method_itself_stands_above_what_a_file_says_of_all(full_spec, monkeypatch):
    shared = full_spec("memit").model_dump(exclude={"method", "seed"}, exclude_unset=True)
    file = {"shared": shared | {"target_mode": "fast", "targets_from": "base"}}
    model = SimpleNamespace(name="unheard-of", n_layers=4, d_k=24, kind=None)
    monkeypatch.setattr(spec_module, "load_defaults", lambda name: file)
    ultra, rls, memit = (EditSpec(method=name).resolve(model) for name in ("ultraedit", "memit_rls", "memit"))
    assert (ultra.target_mode, ultra.targets_from, rls.targets_from) == ("gradient", "current", "base")
    assert (memit.target_mode, memit.stop_probability) == ("fast", FAST_STOP)
    file["ultraedit"] = {"target_mode": "exact"}
    assert EditSpec(method="ultraedit").resolve(model).target_mode == "exact", "unless it says so of the method"


@pytest.mark.parametrize(("name", "steps", "ridge"), [("gpt2-xl", 4, 10.0), ("meta-llama-3-8b", 2, 20.0)])
def test_encores_published_settings_are_its_defaults(name, steps, ridge):
    model = SimpleNamespace(name=name, n_layers=48, d_k=64, kind=None)
    spec = EditSpec(method="encore").resolve(model)
    assert (spec.most_probable_steps, spec.update_norm_lambda) == (steps, ridge)
    assert EditSpec(method="memit").resolve(model).most_probable_steps == 0


def test_fast_targets_take_more_steps_of_fewer_prompts_where_nobody_says_otherwise():
    model = SimpleNamespace(name="smollm2-135m", n_layers=30, d_k=1536, kind=None)

    def resolved(**changes):
        spec = EditSpec(**{"method": "memit", "target_mode": "fast", **changes}).resolve(model)
        return spec.v_num_grad_steps, spec.prompts_per_step

    default = EditSpec(method="memit").resolve(model).v_num_grad_steps
    assert resolved() == (math.ceil(FAST_STEPS * default), FAST_PROMPTS)
    assert resolved(v_num_grad_steps=7) == (7, FAST_PROMPTS)
    assert resolved(prompts_per_step=0) == (default, 0), "all prompts, as published"
    assert resolved(most_probable_steps=2) == resolved(method="encore") == (default, 0)
    with pytest.raises(ValueError, match="prompts_per_step = 1: must be 0 with most_probable_steps"):
        resolved(most_probable_steps=2, prompts_per_step=1)
