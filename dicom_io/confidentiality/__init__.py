"""PS3.15 Annex E: the standard's table, what it does to an attribute, and pseudonyms."""
