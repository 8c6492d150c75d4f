"""The life of a model in a clinic, from what its node has recorded: what has drifted, and how good are its results still?"""
