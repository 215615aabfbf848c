"""One page of everything that a run found out: it can be mailed, opened on a phone, and read without a network.

What stands on it follows from params.yaml, never from what lies about in metrics/: an old file is not a result.

`page` is the document and the order of its sections. `summary`, `params`, `verdicts`, `training`, `prior`, `samples` and
`plugins` each have a `body`: what one section holds. `elements` are the numbers, pictures and tables that they are made of,
`chart` draws curves, `style` is the look.

Plug-ins are known here by name only to choose what a reader sees first (`summary.HEADLINE`), what stands beside the accuracy
of the prior (`prior.ORACLE`) and beside its samples, and what is said under sheets of images, which carry no words of their
own (`elements.CAPTIONS`). Where params.yaml does not run one, it is left out. What a plug-in is about, the page takes from
its own first lines.
"""
