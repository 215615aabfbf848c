"""samples: prior, tokenizer, codes -> artifacts/samples/, of the prior and of the baseline, and sheets of them"""

from tessera.core import files
from tessera.core.run import Run
from tessera.runtime.stage import enter
from tessera.steps import samples as step


def main(run: Run) -> None:
    tokenizer = run.tokenizer().to(run.runtime.device)
    for of, prior in (("samples", run.prior()), ("baseline", step.baseline(run))):
        drawn = step.draw(of, prior.to(run.runtime.device), tokenizer, run)
        for kind, array in drawn.items():
            files.save_array(run.folder("samples") / of / f"{kind}.npy", array)
        files.write_picture(files.PLOTS / "samples" / f"{of}.png", step.picture(drawn["images"]))


if __name__ == "__main__":
    enter(main)
