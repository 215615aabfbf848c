"""Studies as files: `studies/NAME.yaml` lists runs, `python -m tessera.studies NAME` executes them and writes the page.

`sweep` reads the file. `plan` finds the stages of a run and the values that count. `queue` runs a study as DVC experiments,
`direct` without DVC (on a GPU machine that has only torch), `cluster` on the machines of a Dask cluster (`worker` is what they
do). `results` collects the results of the runs, `pages` writes
docs/studies/NAME.md, and `correlation` computes which diagnostic predicts how well a prior models the codes.
"""
