"""Two evaluations compared pair by pair, one evaluation by subgroups, and a gate for releases. Reads what `evaluate` wrote.

`pairing` pairs, `differences` compares, `release_gate` decides, `attributes` and `subgroups` look at groups of people,
`rank_tests` tells chance from change, `comparison_writer` writes. What is read: `report.stored_evaluation`.
"""
