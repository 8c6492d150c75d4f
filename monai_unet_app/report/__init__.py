"""From an evaluation to files: metrics.json, cases.csv, one self-contained report.html, and report.pdf."""
