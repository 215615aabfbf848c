"""What the figures are that no plug-in defines: a list at the end of the page, to which each of them links."""

from __future__ import annotations

from html import escape

# name of a metric without its group -> what it is
DEFINITIONS = {
    "psnr_db": "10 log10(1 / error), in dB, of the squared error on values from 0 to 1, its mean over all pixels of all images. "
    "Half the error is 3 dB more.",
    "psnr_db_per_image": "The mean of the PSNRs of the single images. It is never below that of the mean error.",
    "psnr_db_from_z": "The PSNR of the mean error where the decoder gets the latents as they are, without quantization. What it is "
    "above psnr_db is what the codes lose.",
    "ssim": "Structural similarity, at most 1, with uniform windows of 7x7 pixels, as scikit-image computes it by default.",
    "ssim_gaussian": "Structural similarity, at most 1, with Gaussian windows of 11x11 pixels (Wang et al. 2004, eq. 13).",
    "mse": "Mean squared error on values from -1 to 1, as the loss has it: four times that on values from 0 to 1.",
    "mse_pixels": "Mean squared error of 8-bit images, on values from 0 to 1.",
    "commitment": "The squared distance of latents from their code vectors, times beta: it moves the encoder.",
    "codebook_error": "The squared distance of code vectors from the latents that they stand for, not weighted.",
    "total": "The sum of all loss terms, each times its weight.",
    "usage": "The fraction of the codebook that occurs at all, from 0 to 1.",
    "perplexity": "2 to the entropy of the codes in bits: as many equally frequent codes would have the same entropy.",
    "nll": "-log p of a code given those before it, in nats; the mean over all codes.",
    "nll_bits_per_code": "-log2 p of a code given those before it, in bits; the mean over all codes.",
    "nll_bits_per_image": "The sum of the bits of an image's codes; the mean over all images.",
    "nll_bound_bits_per_code": "An upper bound of the bits per code, of a prior that has no exact likelihood.",
    "accuracy": "Of a prior: the fraction of codes that had the highest probability. Of a feature network: the fraction of images "
    "whose class it names.",
    "fraction_saved": "The fraction of bits that the probe saves beside codes whose frequencies alone are known; 0: it has learnt "
    "nothing about their order.",
    "gap_bits_per_code": "Bits per code of the validation split above those of the train split.",
    "gradient_norm": "The length of the gradient of all weights, before it is clipped; the mean over the steps since the last "
    "evaluation.",
    "lr": "The learning rate of the last step before the evaluation.",
    "epoch": "The epoch whose weights are used: that of the best score on the validation split.",
    "families": "Sets of variants of one image; each stands in one split.",
    "duplicates_removed": "Images that were left out, since another one has the same pixels.",
    "group_accuracy": "The fraction of reconstructed test images whose group is found from their features. In the same way samples "
    "are put into groups.",
}


def linked(name: str) -> str:
    """The name of a figure as HTML, with a link to its definition if there is one."""
    return f'<a href="#{anchor(name)}">{escape(name)}</a>' if name in DEFINITIONS else escape(name)


def anchor(name: str) -> str:
    return f"definition-{name}"


def body() -> str:
    items = "".join(
        f'<dt id="{anchor(name)}">{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in DEFINITIONS.items()
    )
    return (
        "<p>Figures of diagnostics, evaluation and extensions are defined by the words at the head of each. PSNR and SSIM "
        f'are of 8-bit images.</p>\n<dl class="definitions">{items}</dl>\n'
    )
