"""Parameters of a report run: the chapters' own, composed, and the files that state them."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import yaml

from editkit.config import shown
from editkit.editing.spec import EditSpec
from editkit.plain import decode
from editkit.studies import places
from editkit.studies.damage import DamageParams
from editkit.studies.equal_cost import EqualCostParams
from editkit.studies.evaluation import EvaluationParams
from editkit.studies.locate import LocateParams
from editkit.studies.lora import LoraParams
from editkit.studies.nullspace import NullSpaceParams
from editkit.studies.ordering import OrderingParams
from editkit.studies.repair_spec import ImageParams, RepairSpec
from editkit.studies.replay_rank import ReplayRankParams
from editkit.studies.runs import BaselineParams
from editkit.studies.sequences import SequenceParams
from editkit.studies.setting import SettingParams
from editkit.studies.survival import SurvivalParams
from editkit.studies.sweep import SweepParams

BASE = "base.yaml"  # beside a parameter file: what it does not state


class RunParams(
    ImageParams,
    LoraParams,
    NullSpaceParams,
    DamageParams,
    ReplayRankParams,
    OrderingParams,
    SequenceParams,
    SurvivalParams,
    EqualCostParams,
    EvaluationParams,
    BaselineParams,
    LocateParams,
    SettingParams,
):
    """Every parameter of a report run; notebooks declare the ones they use.

    ``params/*.yaml`` holds them flat; a notebook's ``parameters`` cell holds the same names. The defaults
    are small, so that a notebook opened by hand runs in about a minute.
    """

    report_title: str = "Model editing, measured"
    """Title of the report."""
    run_dir: str = "../reports/notebook"
    """Folder of the run; the report command sets it."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and validate a parameter file, over ``base.yaml`` beside it where there is one.

        Paths become absolute: a relative one counts from the file's folder if it exists there, else from the working
        directory. What only a sweep takes is left to it. Raises ``ValueError`` that names the file.
        """
        values = {name: value for name, value in stated_values(path).items() if name not in foreign(cls)}
        try:
            return cls(**values)._checked([Path(path).parent, Path()])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Validate what a notebook holds after its ``parameters`` cell: every value is a parameter.

        Tuples and ranges are taken as lists. Paths become absolute:
        a relative one counts from ``params/``, the working directory or the checkout's root, the first in which it
        exists; for ``run_dir`` see :func:`editkit.studies.places.run_folder`. Raises ``ValueError`` for other values.

        Args:
            namespace: ``globals()``, before any other value is bound; modules, functions, classes and Jupyter's own
                names are left out.
        """
        values = {name: value for name, value in namespace.items() if cls._is_parameter(name, value)}
        params = cls(**{name: _plain(name, value) for name, value in values.items()})
        root = places.checkout()
        params = params._checked([root / "params", Path(), root])
        return params.model_copy(update={"run_dir": places.run_folder(params.run_dir)})

    @classmethod
    def _is_parameter(cls, name: str, value: Any) -> bool:
        if name.startswith("_") or name in ("In", "Out") or isinstance(value, ModuleType):
            return False
        return name in cls.model_fields or not callable(value)

    def _checked(self, folders: places.Folders) -> Self:
        """Return these parameters with absolute paths. Raises ``ValueError`` for paths or options that are wrong."""
        located = places.locate(dict(self), folders)
        params = self.model_copy(update={n: value for n, value in located.items() if value != getattr(self, n)})
        for name in ("hyperparameters", "vit_edit_options"):
            if "method" in (options := getattr(params, name)):
                raise ValueError(f"{name} holds 'method': a parameter of its own says it")
            try:
                EditSpec(method="memit", **options)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if params.evaluation_facts > params.n_facts:
            raise ValueError(f"evaluation_facts = {params.evaluation_facts}: n_facts = {params.n_facts} are edited")
        for data in params.vit_data:
            options = params.options_of(data)
            try:
                RepairSpec(**options)
            except ValueError as error:
                raise ValueError(f"vit_data_options of {data}: {error}") from None
        return params


def foreign(params: type[RunParams]) -> set[str]:
    """Return the names of a sweep's parameters that a file may state and these do not know."""
    return SweepParams.model_fields.keys() - params.model_fields.keys()


def stated_values(path: str | Path) -> dict[str, Any]:
    """Read what a parameter file and the ``base.yaml`` beside it state. Raises ``ValueError`` that names the file."""
    base, stated = Path(path).with_name(BASE), read_values(Path(path))
    return (read_values(base) if base.is_file() else {}) | stated


def read_values(path: Path) -> dict[str, Any]:
    """Read what a flat YAML file states, as it stands there. Raises ``ValueError`` that names the file."""
    if not path.is_file():
        raise ValueError(f"parameter file {path} does not exist")
    text = decode(path.read_bytes(), path, "YAML")
    try:
        values = yaml.load(text, _OnceLoader)
    except Exception as error:  # what a tag or a date that is none raises is not said to be one class
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split()):.300}") from None
    if values is None:  # nothing differs from the base
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got {type(values).__name__}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"{path}: key {odd[0]!r} must be the name of a parameter")
    return values


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that is stated twice, of which YAML's readers otherwise take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [value for number, (tag, value) in enumerate(keys) if (tag, value) in keys[:number]]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is stated twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _plain(name: str, value: Any) -> Any:
    """Bring a value that a notebook holds to what YAML can say. Raises ``ValueError`` where it is none of that."""
    if isinstance(value, list | tuple | range):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{name} = {shown(value)}: a {type(value).__name__} is no parameter; allowed are numbers, texts, True, False, "
        "None, and lists, tuples and dicts of these"
    )
