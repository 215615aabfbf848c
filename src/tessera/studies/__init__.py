"""Sweeps as files: `studies/NAME.yaml` names the runs, `python -m tessera.studies NAME` makes them and writes the page.

`sweep` reads the file, `plan` knows which stages a run has and which values count, `queue` runs it as DVC experiments,
`direct` without DVC (a GPU machine that has only torch), `results` collects what came of each run, `pages` writes
docs/studies/NAME.md, `correlation` asks which diagnostic predicts what a prior will make of the codes.
"""
