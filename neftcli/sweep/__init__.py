"""Sweeps over alpha.

`sweep_alpha` runs a sweep in straight steps: `validate`, `plan`, `estimate` (a dry run) or `scheduler` with one of the
`engines`, then `reporter`, which reads `results`, judges them (`verdict`, `verdict_text`) and writes the `outputs`.
`cell` trains and evaluates one cell; `cell_runs` finds the runs of cells on disk; `folder` finds and locks a sweep.
`early_stopping`, `delta`, `power` and `win_rates` hold the rules, the smallest effect of interest, the minimum
detectable effect of a planned sweep, and the judge's scores.
"""
