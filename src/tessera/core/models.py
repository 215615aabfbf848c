"""Models as files: safetensors for the weights, a recipe to build the module again, a card for people.

A folder such as `artifacts/tokenizer` holds `model.safetensors`, `recipe.json` and `README.md`. The recipe holds the
plug-in's name, its `Config` and its other arguments, so a model can be loaded without params.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tessera.core import files, seams, trees
from tessera.core.conditioning import Conditioning
from tessera.core.errors import InputError
from tessera.core.space import CodeSpace

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

    from tessera.core.contracts import Device, ImageShape, Model, Quantizer
    from tessera.core.params import Params

WEIGHTS, RECIPE, CARD = "model.safetensors", "recipe.json", "README.md"
UNUSED = "unused.json"  # in the place of these: a network that nothing asked for


class Recipe(NamedTuple):
    """How to build a module: the plug-in, its `Config` as plain values, other arguments, and its quantizer if it has one."""

    seam: str
    name: str
    config: dict[str, Any]
    arguments: dict[str, Any]
    quantizer: tuple[str, dict[str, Any]] | None = None


def tokenizer_recipe(params: Params, image_shape: ImageShape) -> Recipe:
    quantizer = (params.value("quantizer.name"), params.config("quantizer").model_dump())
    return recipe(
        "tokenizers", params.value("tokenizer.name"), params.config("tokenizer"), quantizer, image_shape=image_shape
    )


def prior_recipe(params: Params, space: CodeSpace, conditioning: Conditioning, name: str | None = None) -> Recipe:
    name = name or params.value("prior.name")
    return recipe("priors", name, params.config("prior", name), **space.facts, **conditioning.facts)


def conditioning_of(folder: Path) -> Conditioning:
    """What the prior in `folder` is told.

    Raises:
        InputError: there is no model, or it is no prior.
    """
    found = read_recipe(folder)
    if found.seam != "priors":
        raise InputError(f"{folder} must hold a prior, got one of {found.seam}")
    return Conditioning.of_facts(found.arguments)


def in_closed_form(folder: Path) -> bool:
    """Whether the prior in `folder` was fitted in one pass instead of trained."""
    return getattr(seams.plugin("priors", read_recipe(folder).name), "CLOSED_FORM", False)


def extractor_recipe(params: Params, section: str, image_shape: ImageShape, classes: int) -> Recipe:
    """Of the network that `section` chooses: `scorer` or `perceptual`."""
    name = params.value(f"{section}.name")
    return recipe("extractors", name, params.config(section), image_shape=image_shape, classes=classes)


def upsampler_recipe(params: Params, image_shape: ImageShape, vectors: Sequence[tuple[int, ...]]) -> Recipe:
    """`vectors`: shape (D, h, w) of the code vectors of each level, coarse first."""
    name, config = params.value("upsampler.name"), params.config("upsampler")
    return recipe("upsamplers", name, config, image_shape=image_shape, vectors=vectors)


def recipe(
    seam: str, name: str, config: BaseModel, quantizer: tuple[str, dict[str, Any]] | None = None, **arguments: Any
) -> Recipe:
    """Of a plug-in, its values and the other arguments of its `build`."""
    return Recipe(seam, name, config.model_dump(), plain(arguments), quantizer)


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples become lists, as when a recipe is read back."""
    return json.loads(json.dumps(arguments))


def build(recipe: Recipe) -> Any:
    """The model of a recipe, initialised from torch's global generator. `recipe.seam` decides which contract it meets, such as
    `Tokenizer` or `Prior`; the caller annotates which.

    Raises:
        InputError: the plug-in does not exist any more, or does not accept the recipe's values.
    """
    from pydantic import ValidationError

    try:
        module = seams.plugin(recipe.seam, recipe.name)
        arguments = {key: _tuples(value) for key, value in recipe.arguments.items()}
        if recipe.seam == "priors":
            facts = {name: arguments.pop(name) for name in CodeSpace.FACTS if name in arguments}
            arguments["space"] = CodeSpace.of_facts(facts)
            arguments["conditioning"] = Conditioning.of_facts({"conditions": arguments.pop("conditions")})
        if recipe.quantizer is not None:
            name, values = recipe.quantizer
            quantizers = seams.plugin("quantizers", name)
            config = quantizers.Config.model_validate(values)

            def make_quantizer(dim: int | None = None, codebook_size: int | None = None) -> Quantizer:
                own = config if codebook_size is None else config.model_copy(update={"codebook_size": codebook_size})
                return quantizers.build(own, dim)

            arguments["make_quantizer"] = make_quantizer
        return module.build(module.Config.model_validate(recipe.config), **arguments)
    except (ValidationError, ValueError) as error:
        raise InputError(f"{recipe.seam}/{recipe.name} cannot be built: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def save(folder: Path, model: Model, recipe: Recipe, card: str) -> None:
    """Write weights, recipe and card. The card holds no absolute path, time or host name."""
    save_weights(folder / WEIGHTS, model.state_dict())
    files.write_json(folder / RECIPE, recipe._asdict())
    with files.writing(folder / CARD) as stream:
        stream.write(card)


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with files.writing(path, "wb") as stream:
        stream.write(to_bytes(tensors, metadata))


def load_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.exists():
        raise InputError(f"{path}: there is no such file; run `dvc repro` or `dvc pull`")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); delete it and run `dvc repro`") from None


def read_recipe(folder: Path) -> Recipe:
    """The recipe in `folder`. A recipe of an older version is converted to today's names."""
    values = files.read_json(folder / RECIPE)
    try:
        quantizer = tuple(values["quantizer"]) if values["quantizer"] else None
        recipe = Recipe(**{**values, "quantizer": quantizer})
        rename = RENAMED.get((recipe.seam, recipe.name))
        recipe = rename(recipe) if rename is not None else recipe
        missing = ADDED.get((recipe.seam, recipe.name), {}).keys() - recipe.config.keys()
        recipe.config.update({key: ADDED[recipe.seam, recipe.name][key] for key in sorted(missing)})
        return _without_classes(recipe, folder) if recipe.seam == "priors" else recipe
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / RECIPE} is no recipe of a model ({error}). Train it again") from None


def _without_classes(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a prior once had the number of classes in the place of its conditions.

    Raises:
        InputError: there were some, of which nothing but the number is known.
    """
    arguments = dict(recipe.arguments)
    if arguments.pop("classes", 0):
        raise InputError(
            f"{folder / RECIPE} is of a time when a prior did not know the names of its classes. Train it again"
        )
    return recipe._replace(arguments={"conditions": [], **arguments} if "conditions" not in arguments else arguments)


def _pixelcnn(recipe: Recipe) -> Recipe:
    """Both priors were once named `pixelcnn`, and `architecture` chose between them."""
    config = dict(recipe.config)
    architecture = config.pop("architecture", "masked")
    if architecture == "gated":
        del config["first_kernel_size"]  # the gated prior never read it
        return recipe._replace(name="gated_pixelcnn", config=config)
    return recipe._replace(config=config)


RENAMED = {("priors", "pixelcnn"): _pixelcnn}  # plug-in of an older recipe -> function that converts the recipe
# plug-in -> values that its older recipes lack, as they were before there was a choice: a value that is added to a network's
# Config is named here, or models that somebody keeps cannot be loaded any more
ADDED: dict[tuple[str, str], dict[str, Any]] = {
    **{("tokenizers", name): {"attention": 0, "outer_blocks": 0} for name in ("vqvae", "vqvae2", "vae")},
    ("extractors", "efficientnet"): {"variant": "lite0"},
}


def load(folder: str | Path, device: Device = "cpu") -> Any:
    """The model saved in `folder`, in eval mode and ready to use: `tessera.load("artifacts/tokenizer")`.

    Raises:
        InputError: a file is missing or truncated, or the weights do not fit the recipe. The message names the files.
    """
    folder = Path(folder)
    model = build(read_recipe(folder))
    state = load_weights(folder / WEIGHTS)
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not part of the model" for name in state if name not in expected]
    # a module lists in `sized_by_data` the buffers whose length depends on the data; it resizes them itself
    free = {f"{path}.{name}" for path, part in model.named_modules() for name in getattr(part, "sized_by_data", ())}
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, want {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and name not in free and state[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(f"{folder / WEIGHTS} does not fit {folder / RECIPE}: {'; '.join(wrong[:5])}. Train it again")
    model.load_state_dict(state)
    return model.to(device).eval()


def card(
    folder: str, recipe: Recipe, stage_params: dict[str, Any], metrics: dict[str, Any], notes: Sequence[str] = ()
) -> str:
    """A model card as on the Hugging Face hub: YAML header, code that loads the model, its metrics and its params. `notes` name
    the params that the training changed."""
    import yaml

    head = {"library_name": "tessera", "tags": [recipe.seam, recipe.name], "license": "apache-2.0"}
    rows = "\n".join(f"| {name} | {value:.5g} |" for name, value in trees.numbers(metrics))
    said = "".join(f"- {note}\n" for note in notes) + ("\n" if notes else "")
    values = yaml.safe_dump(stage_params, sort_keys=False, default_flow_style=False)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {recipe.seam.removesuffix('s')}: {recipe.name}\n\n"
        f'```python\nimport tessera\n\nmodel = tessera.load("{folder}")\n```\n\n'
        f"## Metrics\n\n| metric | value |\n|---|---|\n{rows}\n\n## Params\n\n{said}```yaml\n{values}```\n"
    )
