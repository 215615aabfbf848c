"""samples: prior, tokenizer, codes -> artifacts/samples/, of the prior, of the baseline, and of N(0, I) where the
tokenizer can decode that, and sheets of them"""

from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import samples as step


def main(run: Run) -> None:
    tokenizer = run.tokenizer().to(run.runtime.device)
    sets = {"samples": run.prior(), "baseline": step.baseline(run)}
    drawn = {of: step.draw(of, prior.to(run.runtime.device), tokenizer, run) for of, prior in sets.items()}
    if hasattr(tokenizer, "sample"):
        drawn["gaussian"] = step.draw_without_prior("gaussian", tokenizer, run)
    for of, arrays in drawn.items():
        for kind, array in arrays.items():
            files.save_array(run.folder("samples") / of / f"{kind}.npy", array)
        files.write_picture(files.PLOTS / "samples" / f"{of}.png", step.picture(arrays["images"]))
    files.write_json(run.folder("samples") / "facts.json", {"sets": list(drawn)})


if __name__ == "__main__":
    enter(main)
