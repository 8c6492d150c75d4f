"""DICOM in and out. Knows files, wires and the patient; never a model, never torch."""
