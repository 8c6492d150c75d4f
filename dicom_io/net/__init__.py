"""Sends results to an archive and fetches images from it, over DIMSE and DICOMweb (`exchange`); receives instances (`scp`)."""
