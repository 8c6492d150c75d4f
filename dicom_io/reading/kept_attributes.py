"""The attributes that readers keep of the headers of files, by their meaning."""

CLOCKS = ("FrameReferenceDateTime", "FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
"""Times of day, with or without a date."""

TIMES = (
    "TemporalPositionIdentifier", "TemporalPositionIndex", "TemporalPositionTimeOffset",
    "NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase", "NominalCardiacTriggerDelayTime",
    "NominalCardiacTriggerTimePriorToRPeak", "TriggerTime", "FrameReferenceTime", *CLOCKS,
)  # fmt: skip
"""Attributes that grow with time: they order the slices at a position if no value is shared by a whole stack."""

COUNTS = ("AcquisitionNumber", "FrameAcquisitionNumber", "StackID")
"""Numbers that a scanner chooses freely: they say which slices belong together, and nothing else."""

RUNNING_NUMBER = "InstanceNumber"
"""Grows from slice to slice of a series; used where nothing else tells the slices at a position apart."""

SETTINGS = (
    "EchoTime", "EffectiveEchoTime", "InversionTime", "InversionTimes", "DiffusionBValue", "DiffusionGradientOrientation",
    "ComplexImageComponent", "ImageType", "FrameType", "ConvolutionKernel", "KVP",
)  # fmt: skip
"""Attributes of the contrast of a slice: one volume has one value of each."""

DISTINGUISHING = (*TIMES, *COUNTS, RUNNING_NUMBER, *SETTINGS)
"""Attributes that may distinguish two slices at one position: time, echo, kernel; never anything of the patient."""

CSA_BLOCKS = range(0x10, 0x18)
"""Blocks of group 0029 that are searched for Siemens' CSA image header; PS3.5 7.8.1: a writer may reserve any block."""
