"""The stage infiller: a small masked prior on the codes, which fills in what is hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pytest
import torch
from conftest import labelled

from stages import infiller
from tessera.core import files, models
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.run import Run
from tessera.core.seeding import generator


@pytest.fixture
def run_of(raw, tiny_run):
    """`run_of(prior="masked", conditional=True, epochs=2)`: a run whose tokenizer and prior are not trained; `epochs` and other
    values are of the section's `training`."""

    def make(prior: str = "pixelsnail", conditional: bool = False, **training: Any) -> Run:
        raw["infiller"]["training"] |= training
        return kinds.untrained(kinds.GRIDS["one grid"], raw, tiny_run().runtime, "inpainting", prior, conditional)

    return make


def test_it_learns_what_neighbours_say(run_of, raw):
    """Codes that are all equal: given three of four, the last is certain."""
    raw["infiller"] |= {"channels": 32, "layers": 1, "heads": 2}
    run = run_of(epochs=60, lr=0.02, batch_size=12)
    for split in ("train", "val"):
        rows = np.arange(len(run.codes(split)))[:, None] % 4
        files.save_array(run.folder("codes") / f"{split}.npy", np.repeat(rows, 4, 1).astype(np.int32))
    infiller.main(run)
    known = torch.tensor([[0, 9, 0, 0], [1, 1, 9, 1], [9, 2, 2, 2], [3, 3, 3, 9]])
    filled = run.infiller().sample(4, generator(0), Sampling(), None, known.clamp(max=3), known != 9)
    assert torch.equal(filled, torch.arange(4)[:, None].expand(-1, 4))


@pytest.mark.parametrize("conditional", [False, True])
def test_what_is_saved_is_the_best_epoch_and_has_the_bound_that_is_said(run_of, raw, conditional):
    run = run_of(conditional=conditional, epochs=4, lr=0.02, evaluate_every=1)
    infiller.main(run)
    curve, metrics = files.read_table(Path("plots/infiller.csv")), files.read_json(Path("metrics/infiller.json"))
    assert metrics["epoch"] == curve.loc[curve["val_nll_bits_per_code"].idxmin(), "epoch"]
    prior = run.infiller()
    assert prior.conditioning == labelled(2 if conditional else 0, 0.0)
    data, batch_size = infiller.Data(run, prior.conditioning), raw["infiller"]["training"]["batch_size"]
    again = infiller.task(infiller.Objective(prior), data, batch_size, run.params.seed)
    with torch.no_grad():
        row = again.evaluate(again.objective.eval())
    assert row["val_nll_bits_per_code"] == pytest.approx(metrics["val"]["nll_bound_bits_per_code"], rel=1e-5)


def test_its_loss_is_that_of_the_prior_masked(run_of):
    """The mean over many masks of the codes of one image, against the prior's own estimate."""
    run = run_of()
    infiller.main(run)
    prior, codes = run.infiller(), torch.from_numpy(run.codes("val")[:1].astype(np.int64))
    objective, rng = infiller.Objective(prior), generator(1)
    many = codes.expand(4000, -1)
    with torch.no_grad():
        ours = objective(many, None, torch.rand(4000, codes.shape[1] + 1, generator=rng))["nll"]
        config = {**prior.config.model_dump(), "bound_draws": 600}
        recipe = models.read_recipe(run.folder("infiller"))._replace(config=config)
        exact = models.build(recipe).eval()
        exact.load_state_dict(prior.state_dict())
        theirs = -exact.log_prob(codes, None)[0] / codes.shape[1]
    assert float(ours) == pytest.approx(float(theirs), rel=0.03)


def test_training_goes_through_fit_and_can_be_resumed(run_of, runtime, monkeypatch):
    asked, saved = [], []
    monkeypatch.setattr(runtime, "resume", asked.append)
    monkeypatch.setattr(runtime, "checkpoint", lambda task, pack, force=False: saved.append(task), raising=False)
    infiller.main(run_of())
    assert asked == ["infiller"]
    assert set(saved) == {"infiller"}


@pytest.mark.parametrize(("prior", "enabled"), [("pixelsnail", False), ("masked", True)])
def test_it_is_not_made_where_nothing_asks_for_it(run_of, raw, prior, enabled):
    run = run_of(prior)
    raw["infiller"]["enabled"] = enabled
    infiller.main(run)
    assert [path.name for path in Path("artifacts/infiller").iterdir()] == ["unused.json"]
    assert files.read_json(Path("metrics/infiller.json")) == {"applies": 0}
    assert files.read_table(Path("plots/infiller.csv")).to_dict("list") == {"epoch": [0]}
    assert run.unused("infiller") == (
        "prior.name is masked, which fills in by itself" if enabled else "infiller.enabled is false"
    )


@pytest.mark.parametrize("changed", [{"channels": 16}, {"steps": 4}])
def test_one_of_other_values_is_refused(run_of, raw, changed):
    run = run_of()
    infiller.main(run)
    assert run.infiller().config.steps == 3
    raw["infiller"] |= changed
    (name,) = changed
    with pytest.raises(InputError, match=rf"{name} is \d+ in the model, .* Run `dvc repro infiller`"):
        run.infiller()
