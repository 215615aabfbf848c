"""One page with all results of a run. It can be mailed, opened on a phone, and read without a network.

params.yaml decides what the page shows, not the files in metrics/: an old file is not a result.

`page` is the document and the order of its sections. `summary`, `params`, `verdicts`, `training`, `prior`, `samples` and
`plugins` each have a `body`, the content of one section. `elements` makes numbers, pictures and tables, `chart` makes curves,
`definitions` says what figures are, `style` is the CSS.

The page knows plug-ins by name only in four places: the headline (`summary.HEADLINE`), the oracle beside the accuracy of the
prior (`prior.ORACLE`), the link beside its samples, and the captions of sheets of images (`elements.CAPTIONS`). A plug-in that
params.yaml does not run is left out. The page describes each plug-in by the first lines of the plug-in's own docstring.
"""
