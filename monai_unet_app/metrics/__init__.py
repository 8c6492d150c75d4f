"""Scores and calibration figures on bare arrays. Imports nothing else of the project.

`overlap`, `boundary`, `components` and `centreline` compare two masks, `reliability` counts what probabilities come
to in each of the `populations`, `bootstrap` says how sure a mean is, and `Evaluation` does all of it, case after
case, as an `EvaluationPlan` says.
"""
